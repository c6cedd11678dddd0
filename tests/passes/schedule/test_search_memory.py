# SPDX-License-Identifier: Apache-2.0
"""The list scheduler where memory is scarce: what the limits forbid, and what is found within them."""

from __future__ import annotations

from itertools import chain
from unittest import mock

import pytest

from farskip_compile.passes.schedule import kernels, search
from farskip_compile.passes.schedule.least_memory import least_memory
from farskip_compile.passes.schedule.memory import bytes_in_flight, live_bytes
from farskip_compile.passes.schedule.program import Buffer, Program, Task, TaskRole, bytes_leaving
from farskip_compile.passes.schedule.search import MemoryLimits, list_schedule
from farskip_compile.passes.schedule.timeline import simulate
from tests.passes.schedule.sample_programs import far_skip_layers, scarce_memory, with_memory


def test_gaps_are_filled_where_memory_is_scarce() -> None:
    program = with_memory(
        far_skip_layers(2, rewired=True).tasks, [30, 0, 10, 30, 30, 10, 30, 10, 1, 1, 10, 1, 0, 10, 1, 10, 0]
    )
    modest = least_memory(program)
    found = list_schedule(program, MemoryLimits(memory_increase=0.1), 1, [modest])
    with mock.patch.object(search, "fill_gaps", lambda program, order, *others: order):
        without = list_schedule(program, MemoryLimits(memory_increase=0.1), 1, [modest])
    assert found.after.makespan < without.after.makespan - 0.9
    assert found.after.peak_bytes <= without.after.peak_bytes


def test_what_is_fallen_back_on_keeps_the_limit_of_what_is_in_flight() -> None:
    """The other order would hold less, with both collectives in flight."""
    tasks = (
        Task("send", (), 1.0, TaskRole.LAUNCH, channel="ep"),
        Task("wait", (0,), role=TaskRole.WAIT, launch=0),
        Task("large"),
        Task("end", (2,)),
        Task("send more", (), 1.0, TaskRole.LAUNCH, channel="ep"),
        Task("wait more", (4,), role=TaskRole.WAIT, launch=4),
    )
    program = Program(tasks, (Buffer(10, 0, (1,)), Buffer(60, 2, (3,)), Buffer(10, 4, (5,)), Buffer(1, 1, (2, 4))))
    both = (0, 4, 1, 5, 2, 3)
    for flight, allowed in ((100, True), (10, False)):
        with mock.patch.object(search, "live_bytes", lambda program, order: [1 if order == both else 100]):
            back = search._to_fall_back_on(program, simulate(program, range(6)), MemoryLimits(0.0, flight), 1, [both])
        assert (back == both) is allowed


def eight_products() -> Program:
    """Independent ones, that would all fit under the collective, but each result stays alive."""
    work = [Task(f"work{i}", (), 1.0) for i in range(8)]
    use = [Task(f"use{i}", (2 + 2 * i,), 0.0) for i in range(8)]
    tasks = [Task("launch", (), 8.0, TaskRole.LAUNCH, "ep"), Task("wait", (), 0.0, TaskRole.WAIT, launch=0)]
    for w, u in zip(work, use, strict=True):
        tasks += [w, Task(u.name, (len(tasks), 1), 0.0)]
    buffers = tuple(Buffer(100, 2 + 2 * i, (3 + 2 * i,)) for i in range(8))
    return Program(tuple(tasks), buffers)


def test_the_increase_is_a_fraction_of_what_is_alive_beside_the_program_too() -> None:
    program = eight_products()
    baseline = simulate(program, range(len(program.tasks))).peak_bytes
    more = MemoryLimits(memory_increase=0.5, beside=13 * baseline)
    assert more.peak(baseline) == 8 * baseline
    assert list_schedule(program, more).after.exposed == 0.0
    assert list_schedule(program, MemoryLimits(memory_increase=0.5)).after.exposed > 0.0
    found = search._to_fall_back_on(program, simulate(program, range(len(program.tasks))), more, baseline // 7, [])
    assert found == tuple(range(len(program.tasks)))


@pytest.mark.parametrize(("came", "more"), [(False, 700), (True, 0)])
def test_the_first_that_leaves_something_may_hold_what_the_next_ones_hold_besides(came: bool, more: int) -> None:
    tasks = (
        Task("earlier", (), 0.0, TaskRole.LAUNCH, "ep", came=came),
        Task("large"),
        Task("leaves", (1,), 1.0, TaskRole.LAUNCH, "ep", leaves=True),
    )
    program = Program(tasks, (Buffer(9000, 1, (2,)), Buffer(700, 2, kept=True)))
    assert bytes_leaving(program) == more
    before = simulate(program, range(3))
    assert search._Search(program, before, MemoryLimits(0.0), 1000, (0, 1, 2)).limit == 1000 + more
    with mock.patch.object(search, "live_bytes", lambda program, order: [2 if order == (0, 1, 2) else 1]):
        back = search._to_fall_back_on(program, before, MemoryLimits(0.0), before.peak_bytes - 700, [(1, 0, 2)])
    assert back == ((1, 0, 2) if came else (0, 1, 2))


def test_memory_forbids_what_time_would_gain() -> None:
    program = eight_products()
    assert list_schedule(program, MemoryLimits(memory_increase=7.0)).after.exposed == 0.0
    tight = list_schedule(program, MemoryLimits(memory_increase=1.0))
    assert tight.after.exposed == pytest.approx(6.0)
    assert tight.after.peak_bytes == 200


def test_of_kernels_a_part_of_the_limit_is_left_to_what_the_account_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    program = eight_products()
    monkeypatch.setattr(kernels, "read_kernels", lambda *given: program)
    monkeypatch.setattr(kernels, "unscheduled_order", lambda given: tuple(range(len(given))))
    _, found = kernels.schedule_kernels(list(program.tasks), mock.Mock(), MemoryLimits(memory_increase=7.0))
    assert found.after.peak_bytes == 600, "of 800 that it might take"


def test_the_unscheduled_order_is_a_fallback_that_keeps_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The given order holds too much, and so does the greedy one."""
    tasks = [Task("launch", (), 8.0, TaskRole.LAUNCH, "ep"), *(Task(f"work{i}", (), 1.0) for i in range(8))]
    tasks += [Task("wait", (), role=TaskRole.WAIT, launch=0), *(Task(f"use{i}", (1 + i, 9)) for i in range(8))]
    program = Program(tuple(tasks), tuple(Buffer(100, 1 + i, (10 + i,)) for i in range(8)))
    as_given, unscheduled = tuple(range(18)), (0, 9, *chain.from_iterable((1 + i, 10 + i) for i in range(8)))
    assert [max(live_bytes(program, order)) for order in (as_given, unscheduled)] == [800, 100]
    monkeypatch.setattr(kernels, "read_kernels", lambda *given: program)
    monkeypatch.setattr(kernels, "unscheduled_order", lambda given: unscheduled)
    monkeypatch.setattr(kernels, "least_memory", lambda program: as_given)
    _, found = kernels.schedule_kernels(tasks, mock.Mock(), MemoryLimits(memory_increase=2.5))  # type: ignore[arg-type]
    assert found.after.peak_bytes == 300, "of 100, and 80 % of the increase"


def test_windows_find_what_the_limit_on_memory_leaves() -> None:
    program = scarce_memory()
    assert list_schedule(program, MemoryLimits(0.05)).after.exposed <= 1.0  # with moves
    with mock.patch.object(search, "lower_peak", lambda program, order, limit: order):
        schedule = list_schedule(program, MemoryLimits(0.05))
    assert 0 < schedule.window < len(program.tasks)
    assert schedule.before.exposed == 8.0
    assert schedule.after.exposed == pytest.approx(1.0)


def test_a_bound_on_bytes_in_flight() -> None:
    """Two collectives fit, three do not."""
    tasks = [Task("start", (), 0.1)]
    for i in range(3):
        tasks.append(Task(f"launch{i}", (0,), 1.0, TaskRole.LAUNCH, f"group{i}"))
        tasks.append(Task(f"wait{i}", (), 0.0, TaskRole.WAIT, launch=1 + 2 * i))
    tasks.append(Task("work", (0,), 5.0))
    program = Program(tuple(tasks), tuple(Buffer(60, 1 + 2 * i, (2 + 2 * i,)) for i in range(3)))
    order = list_schedule(program, MemoryLimits(9.0, in_flight_bytes=120)).order
    assert max(bytes_in_flight(program, order)) == 120
    assert max(bytes_in_flight(program, list_schedule(program, MemoryLimits(9.0)).order)) == 180


@pytest.mark.parametrize(("seconds", "moves"), [(0.5, True), (0.002, False)])
def test_memory_is_not_given_for_next_to_nothing(seconds: float, moves: bool) -> None:
    """What could hide a part of the collective takes the place of what is sent, if it waits."""
    tasks = (
        Task("make"),
        Task("send", (0,), 1.0, TaskRole.LAUNCH, channel="ep"),
        Task("wait", (1,), role=TaskRole.WAIT, launch=1),
        Task("other", (), seconds),
        Task("last", (2, 3), 0.1),
    )
    buffers = (Buffer(1000, 0, (1, 2)), Buffer(1000, 3, (4,)))
    assert list_schedule(Program(tasks, buffers), MemoryLimits(memory_increase=10.0)).changed is moves
    assert list_schedule(Program(tasks), MemoryLimits(memory_increase=10.0)).changed
