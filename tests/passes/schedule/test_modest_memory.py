# SPDX-License-Identifier: Apache-2.0
"""Orders that take most of what the limit on memory allows, where others do with less."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from farskip_compile.passes.schedule import search
from farskip_compile.passes.schedule.program import Program, TaskRole
from farskip_compile.passes.schedule.search import MODEST, WORTH, MemoryLimits, Schedule, list_schedule
from farskip_compile.passes.schedule.timeline import simulate
from farskip_compile.testing.strategies import programs
from farskip_compile.testing.strategies.programs import consistent
from tests.passes.schedule.sample_programs import far_skip_layers, with_memory

INCREASE = 0.3
SIZES = [10, 1, 10, 1, 30, 1, 1, 0, 30, 1, 1, 1, 30, 1, 0, 0, 30]
"""Bytes that each task of two layers makes."""
LITTLE = [30, 1, 30, 10, 30, 1, 10, 1, 30, 1, 10, 1, 10, 10, 30, 10, 1, 1, 30, 1, 0, 1, 0, 10, 30]
"""Of three layers, where an order is as fast within a third of the increase, but none is found within 0.6 of it."""
FASTER = [30, 30, 30, 1, 1, 30, 1, 0, 30, 10, 1, 0, 0, 30, 30, 1, 0]


def greedy(program: Program, increase: float) -> Schedule:
    """Without trying to do with less."""
    with mock.patch.object(search, "MODEST", ()):
        return list_schedule(program, MemoryLimits(increase))


def seconds(program: Program, found: Schedule) -> float:
    """By which orders are compared: on the network as it is and on the slowest."""
    tasks = [replace(t, seconds=t.seconds * 1.5) if t.role is TaskRole.LAUNCH else t for t in program.tasks]
    both = program, Program(tuple(tasks), program.buffers)
    return sum(simulate(one, found.order).makespan for one in both)


def layers_with_memory(sizes: list[int]) -> Program:
    return with_memory(far_skip_layers(len(sizes) // 8, rewired=True).tasks, sizes)


def test_of_two_orders_that_are_as_fast_the_one_that_holds_less_is_taken() -> None:
    program = layers_with_memory(SIZES)
    more, less = greedy(program, INCREASE), list_schedule(program, MemoryLimits(INCREASE))
    assert (more.baseline_peak, more.after.peak_bytes, less.after.peak_bytes) == (33, 41, 33)
    assert less.after.makespan == more.after.makespan < more.before.makespan


def test_where_a_part_of_the_limit_brings_nothing_a_smaller_one_may() -> None:
    program = layers_with_memory(LITTLE)
    with mock.patch.object(search, "MODEST", MODEST[:1]):
        more = list_schedule(program, MemoryLimits(INCREASE))
    less = list_schedule(program, MemoryLimits(INCREASE))
    assert (more.baseline_peak, more.after.peak_bytes, less.after.peak_bytes) == (54, 70, 54)
    assert less.after.makespan == more.after.makespan < more.before.makespan


@given(programs().map(consistent), st.sampled_from([0.1, INCREASE, 1.0]))
def test_less_memory_costs_next_to_no_time(program: Program, increase: float) -> None:
    more, less = greedy(program, increase), list_schedule(program, MemoryLimits(increase))
    if less.order == more.order:
        return
    assert more.after.peak_bytes > more.baseline_peak * (1 + increase * MODEST[-1])
    assert less.after.peak_bytes <= max(less.before.peak_bytes, less.baseline_peak * (1 + increase * MODEST[0]))
    assert seconds(program, less) <= (1 + WORTH) * seconds(program, more) + 1e-9


def test_memory_that_saves_time_is_taken() -> None:
    """As far as the limit allows: within half of it, the order found is slower by more than next to nothing."""
    program = layers_with_memory(FASTER)
    more, less = (
        list_schedule(program, MemoryLimits(INCREASE)),
        list_schedule(program, MemoryLimits(INCREASE * MODEST[0])),
    )
    assert more.after.peak_bytes > more.baseline_peak * (1 + INCREASE * MODEST[0])
    assert more.after.makespan < less.after.makespan * (1 - WORTH)
