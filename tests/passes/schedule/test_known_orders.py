# SPDX-License-Identifier: Apache-2.0
"""What the scheduler goes by besides the tasks: issue order on a channel, and orders that are known already."""

from __future__ import annotations

import pytest
from hypothesis import given

from farskip_compile.passes.schedule.program import Buffer, Program, Task, TaskRole, check_order
from farskip_compile.passes.schedule.search import MemoryLimits, list_schedule
from farskip_compile.testing.strategies.programs import consistent, programs


def layers(count: int) -> Program:
    """Layers of two sub-blocks that need each other's results one layer later, on one channel: FarSkip by all-reduce.

    In each layer the longer sub-block could go first; but its reduction is issued after the shorter one's.
    """
    tasks: list[Task] = []
    waits: tuple[int, int] | None = None
    for layer in range(count):
        first = len(tasks)
        needs = ((waits[0],), (waits[1],)) if waits else ((), ())
        tasks += [
            Task(f"attention{layer}", needs[0], 1.0),
            Task(f"experts{layer}", needs[1], 3.0),
            Task(f"send_a{layer}", (first,), 0.9, TaskRole.LAUNCH, channel="tp"),
            Task(f"send_r{layer}", (first + 1,), 0.9, TaskRole.LAUNCH, channel="tp"),
            Task(f"wait_a{layer}", (), 0.0, TaskRole.WAIT, launch=first + 2),
            Task(f"wait_r{layer}", (), 0.0, TaskRole.WAIT, launch=first + 3),
        ]
        waits = first + 4, first + 5
    return Program(tuple(tasks))


def test_what_leads_to_the_first_launch_of_a_channel_is_urgent() -> None:
    """All but the last layer's reduction runs under the other sub-block."""
    found = list_schedule(layers(8))
    assert found.after.exposed == pytest.approx(0.9, abs=0.01)
    assert found.before.exposed > 7


def test_a_known_order_is_kept_if_nothing_is_better() -> None:
    program = layers(4)
    best = list_schedule(program)
    assert list_schedule(program, begin_with=[best.order]).after.makespan <= best.after.makespan


@given(programs())
def test_a_known_order_breaks_no_limit(program: Program) -> None:
    program = consistent(program)
    known = list_schedule(program, MemoryLimits(memory_increase=10.0)).order
    found = list_schedule(program, MemoryLimits(memory_increase=0.1), begin_with=[known])
    check_order(program, found.order)
    assert found.after.peak_bytes <= max(int(1.1 * found.before.peak_bytes), found.before.peak_bytes)
    assert found.after.makespan <= found.before.makespan * (1 + 1e-9)


def test_a_known_order_that_holds_too_much_is_refused() -> None:
    """The second value could be made at once, under the first one's collective, if there were room for both."""
    tasks = (
        Task("make", (), 1.0),
        Task("send", (0,), 5.0, TaskRole.LAUNCH, channel="ep"),
        Task("wait", (), 0.0, TaskRole.WAIT, launch=1),
        Task("use", (0, 2), 1.0),
        Task("other", (), 4.0),
        Task("end", (3, 4), 0.1),
    )
    program = Program(tasks, (Buffer(1000, 0, (1, 3)), Buffer(1000, 4, (5,))))
    early = (0, 1, 4, 2, 3, 5)
    kept = list_schedule(program, MemoryLimits(memory_increase=2.0), begin_with=[early])
    refused = list_schedule(program, MemoryLimits(memory_increase=0.05), begin_with=[early])
    assert kept.after.exposed < refused.after.exposed
    assert refused.after.peak_bytes == refused.before.peak_bytes
