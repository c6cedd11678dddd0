# SPDX-License-Identifier: Apache-2.0
"""The bound: small programs with known answers, and never above the best of all orders."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from overlap_bench.bound import bound_of, scaled

from farskip_compile.passes.schedule.program import Program, Task, TaskRole, check_order
from farskip_compile.passes.schedule.timeline import simulate
from farskip_compile.testing.strategies import programs
from farskip_compile.testing.strategies.programs import consistent


def compute(name, seconds, *needs):
    return Task(name, needs, seconds)


def launch(name, seconds, *needs, channel="a", link="", interference=0.0):
    return Task(name, needs, seconds, TaskRole.LAUNCH, channel=channel, link=link, interference=interference)


def wait(name, of, *needs):
    return Task(name, needs, 0.0, TaskRole.WAIT, launch=of)


def bound(*tasks):
    return bound_of([Program(tasks)])


def test_what_comes_before_the_first_and_behind_the_last_collective_hides_nothing_of_it():
    # 1 before, 4 on the wire, 2 behind; 3 more that depend on nothing fit in between
    found = bound(compute("a", 1.0), launch("l", 4.0, 0), wait("w", 1), compute("b", 2.0, 2), compute("free", 3.0))
    assert found.total == 7.0
    assert (found.compute, found.communication) == (6.0, 4.0)
    assert found.unhideable == 1.0


def test_collectives_of_one_channel_run_one_after_another():
    tasks = [launch("l0", 4.0), launch("l1", 3.0), wait("w0", 0), wait("w1", 1), compute("b", 1.0, 3)]
    assert bound(*tasks).total == 8.0
    tasks[1] = launch("l1", 3.0, channel="b")
    assert bound(*tasks).total == 4.0


def test_channels_that_share_a_link_wait_for_each_other():
    tasks = [launch("l0", 4.0, link="wire"), launch("l1", 3.0, channel="b", link="wire")]
    assert (bound(*tasks).total, bound(*tasks).communication) == (7.0, 7.0)


def test_compute_that_is_slower_under_collectives_is_told_apart():
    tasks = [launch("l", 2.0, interference=1.0), compute("a", 3.0), wait("w", 0)]
    found = bound(*tasks)
    assert (found.total, found.unhideable) == (3.0, 0.0)
    assert found.slowed == simulate(Program(tuple(tasks)), (0, 1, 2)).makespan == 4.0  # a second's work in the two


def test_compute_between_two_collectives_is_on_the_way():
    # dispatch, experts, combine: 2 + 3 + 2, whatever else there is
    tasks = [
        launch("dispatch", 2.0),
        wait("w0", 0),
        compute("experts", 3.0, 1),
        launch("combine", 2.0, 2),
        wait("w1", 3),
        compute("attention", 1.0),
    ]
    assert bound(*tasks).total == 7.0
    assert bound(*tasks).unhideable == 3.0


def test_of_two_pieces_the_first_dispatch_and_the_last_combine_are_on_the_way() -> None:
    """2 + 3 + 3 + 2: the experts of the second piece come after its dispatch, and that after the first one's."""
    tasks = (
        launch("dispatch 1", 2.0),
        launch("dispatch 2", 2.0),
        wait("w0", 0),
        compute("experts 1", 3.0, 2),
        launch("combine 1", 2.0, 3),
        wait("w1", 1),
        compute("experts 2", 3.0, 5),
        launch("combine 2", 2.0, 6),
        wait("w2", 4),
        wait("w3", 7),
    )
    assert bound(*tasks).total == pytest.approx(_best(Program(tasks[:8]))) == 10.0


def test_a_launch_that_nobody_waits_for_is_no_ancestor_of_what_needs_its_issue():
    """Such a need is an order only: the other channel is free at once."""
    assert bound(launch("l0", 5.0), launch("l1", 2.0, 0, channel="b"), wait("w1", 1)).total == 5.0


def test_estimates_that_are_off_are_scaled_to_what_was_measured():
    one = Program((launch("l", 2.0), wait("w", 0), compute("b", 1.0, 1)))
    two = Program((launch("l", 6.0), compute("a", 3.0), wait("w", 0)))
    found = scaled([one, two], 12.0, 4.0)
    assert [[task.seconds for task in program.tasks] for program in found] == [[1.0, 0.0, 3.0], [3.0, 9.0, 0.0]]
    assert (bound_of(found).compute, bound_of(found).communication, bound_of(found).total) == (12.0, 4.0, 13.0)
    assert scaled([Program((compute("a", 0.0),))], 2.0, 1.0)[0].tasks[0].seconds == 0.0


def test_programs_one_after_another_and_none_at_all():
    one = Program((launch("l", 2.0), wait("w", 0), compute("b", 1.0, 1)))
    both = bound_of([one, one])
    assert (both.total, both.compute, both.communication) == (6.0, 2.0, 4.0)
    assert bound_of([]).total == 0.0
    assert bound(compute("a", 1.5)).unhideable == 0.0


@settings(max_examples=150, deadline=None)
@given(programs(most=7).map(consistent))
def test_no_order_beats_it(program: Program) -> None:
    found = bound_of([program])
    assert found.total <= found.slowed <= _best(program) + 1e-9
    assert found.total >= max(found.compute, found.communication) - 1e-9


def _best(program: Program) -> float:
    """Of all orders that keep the dependences and the order of the launches on each channel."""
    best = float("inf")
    for order in itertools.permutations(range(len(program.tasks))):
        try:
            check_order(program, order)
        except ValueError:
            continue
        channels: dict[str, list[int]] = {}
        for index in order:
            if program.tasks[index].role is TaskRole.LAUNCH:
                channels.setdefault(program.tasks[index].channel, []).append(index)
        if all(launches == sorted(launches) for launches in channels.values()):
            best = min(best, simulate(program, order).makespan)
    return best


def test_it_is_reached_where_everything_can_be_hidden():
    tasks = [launch("l", 2.0), compute("a", 3.0), wait("w", 0), compute("b", 0.5, 2)]
    program = Program(tuple(tasks))
    assert bound_of([program]).total == pytest.approx(_best(program)) == 3.5
