# SPDX-License-Identifier: Apache-2.0
"""One rule of the list scheduler, and the pieces of a layer in the published orders, each by itself."""

from __future__ import annotations

import pytest

from farskip_compile.passes.schedule.list_scheduler import DependencyGraph, Heuristic, make_order
from farskip_compile.passes.schedule.program import Program, Task, TaskRole
from farskip_compile.passes.schedule.published import _piece, _Upstream


def test_a_wait_is_taken_as_soon_as_its_collective_has_finished() -> None:
    """It frees what the collective reads and writes, and what follows it may be launched."""
    tasks = (
        Task("launch", seconds=1.0, role=TaskRole.LAUNCH, channel="g"),
        Task("short", seconds=2.0),
        Task("wait", needs=(0,), role=TaskRole.WAIT, launch=0),
        Task("long", seconds=5.0),
    )
    order = make_order(DependencyGraph(Program(tasks)), Heuristic(0.0, 0.0), window=9, memory=9**9, in_flight=9**9)
    assert [tasks[index].name for index in order] == ["launch", "long", "wait", "short"]


@pytest.mark.parametrize(
    ("kind", "upstream", "backward", "piece"),
    [
        ("a", _Upstream(), False, "front"),
        ("a", _Upstream(kernel=True, is_kernel=True), False, "back"),
        ("a", _Upstream(kernel=True, is_kernel=True), True, "back"),
        ("a", _Upstream(kernel=True), True, "front"),
        ("r", _Upstream(), False, "dispatched"),
        ("r", _Upstream(exchanges=1), False, "experts"),
        ("r", _Upstream(exchanges=2), False, "combined"),
        ("r", _Upstream(exchanges=3), True, "combined"),
        ("s", _Upstream(), False, "rest"),
        ("r", _Upstream(reduced=True), False, "reduced"),
    ],
)
def test_pieces_of_a_layer(kind: str, upstream: _Upstream, backward: bool, piece: str) -> None:
    assert _piece(kind, upstream, backward=backward) == piece
