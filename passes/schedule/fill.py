# SPDX-License-Identifier: Apache-2.0
"""Fill the gaps of an order: what can hide a collective is put between its launch and its wait.

In:    a `Program`, an order of its tasks, a way to judge orders (less is better), and which orders are allowed.
Out:   an order that keeps every dependence and the order of the launches on each channel, as good or better.
Never: gives up what the order has: each step is judged as a whole.

The list scheduler builds an order from the front. Where memory is scarce, it puts off what leads to a launch, or waits
early, and can't know that there would have been room. Algorithm, with a number of trials that falls with the size of
the program:
1. Of the waits at which the compute stream stands still, take the longest.
2. Try to move one of the next long tasks, with all that it needs, in front of the wait; and to move the launch, with
   all that it needs, in front of one of the long tasks that precede it.
3. Of the orders that are allowed, keep the best one if it is better. Else this wait is left as it is.
4. Repeat until every wait is left, or the trials are used up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from farskip_compile.passes.schedule.program import Program, TaskRole, needs_of
from farskip_compile.passes.schedule.timeline import RunTimes, run_timeline

WORK = 100_000
"""Tasks of all orders that are tried, together."""
TASKS = 8
"""How many long tasks are tried after a wait, and before a launch."""
LONG = 0.02
"""Fraction of the time at the wait that a long task takes."""
LEAST = 1e-9
"""Fraction of the time by which an order must be better, and for which the compute stream must stand still."""

TaskOrder = tuple[int, ...]


def fill_gaps(
    program: Program, order: TaskOrder, judge: Callable[[TaskOrder], float], allowed: Callable[[TaskOrder], bool]
) -> TaskOrder:
    """`order`, or a better one."""
    needs = needs_of(program)
    best = judge(order)
    trials = WORK // max(len(order), 1)
    left: set[int] = set()
    run = run_timeline(program, order)
    while trials > 0:
        wait, seconds = _longest_wait(program, run, order, left)  # 1.
        if wait < 0:
            break
        found, tried = order, 0
        for one in _with_the_gap_filled(program, needs, order, wait, LONG * seconds):  # 2.
            tried += 1
            if (cost := judge(one)) < best * (1 - LEAST) and allowed(one):  # 3.
                best, found = cost, one
        trials -= max(tried, 1)
        if found is order:
            left.add(wait)
        else:
            order, run = found, run_timeline(program, found)
    return order


def _longest_wait(program: Program, run: RunTimes, order: TaskOrder, left: set[int]) -> tuple[int, float]:
    """The wait at which most time is lost, of those that are not `left`, and that time; -1: there is none."""
    wait, seconds = -1, LEAST * run.makespan
    for index in order:
        task = program.tasks[index]
        if task.role is TaskRole.WAIT and index not in left and run.end[task.launch] - run.start[index] > seconds:
            wait, seconds = index, run.end[task.launch] - run.start[index]
    return wait, seconds


def _with_the_gap_filled(
    program: Program, needs: Sequence[set[int]], order: TaskOrder, wait: int, long: float
) -> Iterator[TaskOrder]:
    """Orders in which more may run between the launch and the wait."""
    place = order.index(wait)
    after, tried = {wait}, 0
    for here in range(place + 1, len(order)):
        if not after.isdisjoint(needs[order[here]]):
            after.add(order[here])
        elif _is_long(program, order[here], long):
            yield _moved(needs, order, here, place)
            tried += 1
            if tried == TASKS:
                break
    launch = program.tasks[wait].launch
    place, tried = order.index(launch), 0
    before = set(needs[launch])
    for here in range(place - 1, -1, -1):
        if order[here] in before:
            before |= needs[order[here]]
        elif _is_long(program, order[here], long):
            yield _moved(needs, order, place, here)
            tried += 1
            if tried == TASKS:
                break


def _is_long(program: Program, index: int, seconds: float) -> bool:
    return program.tasks[index].role is TaskRole.COMPUTE and program.tasks[index].seconds > seconds


def _moved(needs: Sequence[set[int]], order: TaskOrder, place: int, to: int) -> TaskOrder:
    """The order with the task at `place`, and what it needs of those since `to`, put there."""
    needed = {order[place]}
    wanted = set(needs[order[place]])
    for here in range(place - 1, to - 1, -1):
        if order[here] in wanted:
            needed.add(order[here])
            wanted |= needs[order[here]]
    between = order[to : place + 1]
    taken = [index for index in between if index in needed]
    return (*order[:to], *taken, *(index for index in between if index not in needed), *order[place + 1 :])
