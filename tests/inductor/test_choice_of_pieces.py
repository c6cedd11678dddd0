# SPDX-License-Identifier: Apache-2.0
"""How many pieces "auto" takes, by the schedules in one, two and four: time first, within the limit on memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import fx

from farskip_compile.compiler.inductor_passes.in_pieces import cut_in_pieces
from farskip_compile.passes.contract import Stage
from farskip_compile.passes.graph import comms, ops
from farskip_compile.passes.runner import PassRunner
from farskip_compile.passes.schedule.search import MemoryLimits
from tests.passes.pieces.regions import Region, trace


@pytest.mark.parametrize(
    ("seconds", "peaks", "wanted"),
    [
        ((1.0, 0.8, 0.7), (100, 100, 100), 4),
        ((1.0, 0.8, 0.9), (100, 100, 100), 2),
        ((1.0, 0.8, 0.795), (100, 100, 100), 2),  # next to nothing more
        ((1.0, 0.995, 0.992), (100, 100, 100), 1),
        ((1.0, 0.8, 0.7), (100, 110, 111), 2),  # a tenth more may be held, not more
        ((1.0, 0.8, 0.7), (100, 120, 120), 1),
        ((1.0, 0.8, 0.7), (120, 110, 111), 2),  # of what is held in one piece unscheduled, not scheduled
    ],
)
def test_the_least_time_within_the_limit(seconds: Any, peaks: Any, wanted: int) -> None:
    region = Region(2, 4, 3, "rows", ("weights",))
    module = trace(region.run, torch.randn(region.shape(), dtype=torch.float64), region.tensors())

    def scheduled(graph: fx.Graph) -> Any:
        place = {2: 0, 4: 1, 8: 2}[len(ops.calls(graph, comms.is_all_to_all))]
        after = SimpleNamespace(makespan=seconds[place] - 1, late=1, peak_bytes=peaks[place])
        return SimpleNamespace(before=SimpleNamespace(peak_bytes=100), after=after)

    limits = MemoryLimits(memory_increase=0.1)
    found = cut_in_pieces(
        module.graph, "auto", PassRunner(Stage.POST_GRAD, module.graph), strict=True, scheduled=scheduled, limits=limits
    )
    assert (found.pieces, len(ops.calls(module.graph, comms.is_all_to_all))) == (wanted, 2 * wanted)
