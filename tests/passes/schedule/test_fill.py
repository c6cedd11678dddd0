# SPDX-License-Identifier: Apache-2.0
"""Gaps that an order has left: what is put into them, and that nothing is given up for it."""

from __future__ import annotations

from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farskip_compile.passes.schedule import fill
from farskip_compile.passes.schedule.fill import fill_gaps
from farskip_compile.passes.schedule.memory import live_bytes
from farskip_compile.passes.schedule.program import Buffer, Program, Task, TaskRole, check_order
from farskip_compile.passes.schedule.timeline import run_timeline, simulate
from farskip_compile.testing.strategies import programs
from farskip_compile.testing.strategies.programs import consistent


def filled(program: Program, allowed: int = 10**9) -> tuple[int, ...]:
    """The original order with its gaps filled, within `allowed` bytes."""

    def judge(order: tuple[int, ...]) -> float:
        return run_timeline(program, order).makespan

    def fits(order: tuple[int, ...]) -> bool:
        return max(live_bytes(program, order)) <= allowed

    return fill_gaps(program, tuple(range(len(program.tasks))), judge, fits)


@given(programs().map(consistent), st.floats(0.5, 1.5))
def test_valid_and_never_slower_nor_beyond_what_is_allowed(program: Program, part: float) -> None:
    before = simulate(program, range(len(program.tasks)))
    allowed = int(part * before.peak_bytes)
    order = filled(program, allowed)
    check_order(program, order)
    for channel in "abc":
        launches = [index for index in order if program.tasks[index].channel == channel]
        assert launches == sorted(launches)
    after = simulate(program, order)
    assert after.makespan <= before.makespan
    assert order == tuple(range(len(order))) or after.peak_bytes <= allowed


def exchange(*before: Task, after: tuple[Task, ...]) -> tuple[Task, ...]:
    """Tasks, a launch of one second, its wait, and tasks."""
    launch = Task("send", (), 1.0, TaskRole.LAUNCH, channel="ep")
    return (*before, launch, Task("wait", (), role=TaskRole.WAIT, launch=len(before)), *after)


def names(program: Program, order: tuple[int, ...]) -> list[str]:
    return [program.tasks[index].name for index in order]


def test_what_is_long_is_taken_in_front_of_the_wait_with_what_it_needs() -> None:
    needs_it = Task("experts", (1,), 1.0)
    program = Program(exchange(after=(needs_it, Task("norm"), Task("short", (), 0.01), Task("attention", (3,), 1.0))))
    order = filled(program)
    assert names(program, order) == ["send", "norm", "attention", "wait", "experts", "short"]
    assert run_timeline(program, order).exposed == 0.0


def test_the_launch_is_taken_in_front_of_what_is_long_with_what_it_needs() -> None:
    attention, router = Task("attention", (), 1.0), Task("router")
    launch = Task("send", (1,), 1.0, TaskRole.LAUNCH, channel="ep")
    wait = Task("wait", (0,), role=TaskRole.WAIT, launch=2)  # pinned behind what hides it
    program = Program((attention, router, launch, wait))
    assert names(program, filled(program)) == ["router", "send", "attention", "wait"]


def test_an_order_that_is_not_better_is_not_taken() -> None:
    program = Program(exchange(after=(Task("attention", (), 1.0),)))
    assert fill_gaps(program, (0, 1, 2), lambda order: 1.0, lambda order: True) == (0, 1, 2)


def test_a_wait_that_nothing_hides_is_left_and_the_others_are_not() -> None:
    """Nothing may run beside the first exchange, which is longer."""
    tasks = (
        Task("send first", (), 2.0, TaskRole.LAUNCH, channel="tp"),
        Task("wait first", (), role=TaskRole.WAIT, launch=0),
        Task("router", (1,)),
        Task("send", (2,), 1.0, TaskRole.LAUNCH, channel="ep"),
        Task("wait", (), role=TaskRole.WAIT, launch=3),
        Task("attention", (2,), 1.0),
    )
    program = Program(tasks)
    assert filled(program) == (0, 1, 2, 3, 5, 4)


def test_where_there_is_no_room_the_order_stays() -> None:
    program = Program(
        exchange(after=(Task("attention", (), 1.0),)), (Buffer(40, 0, (1,)), Buffer(70, 2), Buffer(1, kept=True))
    )
    assert filled(program, 111) == (0, 2, 1)
    assert filled(program, 110) == (0, 1, 2)


@pytest.mark.parametrize(("work", "hidden"), [(0, 0), (3, 3), (1000, 8)])
def test_large_programs_get_few_trials(work: int, hidden: int) -> None:
    """Eight exchanges, each with something behind it that hides it: one trial for each."""
    tasks: list[Task] = []
    for _ in range(8):
        here = len(tasks)
        tasks += [
            Task("send", (here - 1,) if tasks else (), 1.0, TaskRole.LAUNCH, channel="ep"),
            Task("wait", (), role=TaskRole.WAIT, launch=here),
            Task("work", (here - 1,) if tasks else (), 1.0),
        ]
        tasks.append(Task("end", (here + 1, here + 2)))
    program = Program(tuple(tasks))
    with mock.patch.object(fill, "WORK", work * len(tasks)):
        exposed = run_timeline(program, filled(program)).exposed
    assert 8 - exposed == hidden
