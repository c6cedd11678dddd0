# SPDX-License-Identifier: Apache-2.0
"""A step in two micro-batches: the tasks of one of them twice, in an order that hides exchanges.

In:    the program of one graph for half of the sequences, and orders of it.
Out:   a `Program`: each task twice, and sums of the buffers to which both halves contribute, in an order in which the
       launches of the halves alternate.
Never: changes a task, or its dependencies on its own half; uses a clock.

Both halves do the same, so one is captured and stands for both. A graph of both halves would have two residual streams,
and the passes rewire one. The halves share parameters and other `shared` inputs; the second half adds its gradients to
those of the first.

The launches of a channel stay in the order of the program, so this order decides how much can be hidden: with all
launches of one half before those of the other, next to nothing. Algorithm, linear:
1. Cut an order of the half into stretches that end with a launch. A stretch with next to no compute joins the one
   before it: an exchange of row counts, then the exchange of the rows.
2. Take the stretches of both halves in turn. The first half may be some stretches ahead, so that attention computes
   beside experts or attention beside attention.
3. Of all these orders, keep the first with the least makespan.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product

from farskip_compile.passes.schedule.program import Buffer, Program, Task, TaskRole
from farskip_compile.passes.schedule.timeline import run_timeline

NEXT_TO_NOTHING = (0.0, 0.1, 0.3)
"""Fractions of the mean compute of a stretch, below which a stretch joins the one before it."""
AHEAD = (0, 1, 2)
"""Stretches by which the first half is ahead."""

RowOrder = Sequence[int]


def in_two_batches(
    half: Program, orders: Sequence[RowOrder], shared: Collection[int], sums: Mapping[int, float]
) -> Program:
    """Return the program of both halves of a step, each of which does the same as `half`.

    Args:
        half: of an ATen graph.
        orders: of its tasks.
        shared: inputs that exist once, as places in `half.buffers`.
        sums: seconds for adding up the two halves' values of a buffer, by its place.
    """
    both = one_after_another(half, shared, sums)
    best = min(_alternating_orders(half, orders, both), key=lambda order: run_timeline(both, order).makespan)
    return in_order(both, best)


def one_after_another(half: Program, shared: Collection[int], sums: Mapping[int, float]) -> Program:
    """Return the program of all tasks of the first half, then the second half, then the sums."""
    count = len(half.tasks)
    tasks = [*half.tasks, *(_of_second_half(task, count) for task in half.tasks)]
    buffers: list[Buffer] = []
    for place, one in enumerate(half.buffers):
        users = tuple(user + count for user in one.users)
        maker = one.maker + count if one.maker >= 0 else -1
        if place in shared:
            buffers.append(Buffer(one.size, -1, one.users + users, one.kept))
        elif place in sums:
            needs = tuple(sorted({one.maker, *one.users, maker, *users}))
            buffers.append(Buffer(one.size, one.maker, (*one.users, len(tasks)), one.kept))
            buffers.append(Buffer(one.size, maker, (*users, len(tasks))))
            tasks.append(Task(f"{half.tasks[one.maker].name}_sum", needs, sums[place]))
        else:
            buffers += Buffer(one.size, one.maker, one.users, one.kept), Buffer(one.size, maker, users, one.kept)
    return Program(tuple(tasks), tuple(buffers))


def _of_second_half(task: Task, by: int) -> Task:
    """Return the second half's task, with indices that are larger `by` the number of the first half's tasks."""
    launch = task.launch + by if task.role is TaskRole.WAIT else task.launch
    return replace(task, name=f"{task.name}'", needs=tuple(need + by for need in task.needs), launch=launch)


def _alternating_orders(half: Program, orders: Sequence[RowOrder], both: Program) -> Iterator[tuple[int, ...]]:
    """Yield orders of `both` in which the stretches of the halves alternate."""
    count = len(half.tasks)
    sums = range(2 * count, len(both.tasks))
    for order, fraction, ahead in product(orders, NEXT_TO_NOTHING, AHEAD):
        parts = stretches(half, order, fraction)
        others = [[index + count for index in part] for part in parts]
        yield tuple(_with_sums(both, sums, in_turn(parts, others, ahead)))


def stretches(program: Program, order: RowOrder, fraction: float) -> list[list[int]]:
    """Cut `order` after each launch; a stretch with less than `fraction` of the mean compute joins the one before."""
    cut: list[list[int]] = [[]]
    for index in order:
        cut[-1].append(index)
        if program.tasks[index].role is TaskRole.LAUNCH:
            cut.append([])
    *cut, rest = cut
    compute = []
    for part in cut:
        tasks = (program.tasks[index] for index in part)
        compute.append(sum(task.seconds for task in tasks if task.role is TaskRole.COMPUTE))
    least = fraction * sum(compute) / max(len(cut), 1)
    found: list[list[int]] = []
    for part, seconds in zip(cut, compute, strict=True):
        if found and seconds < least:
            found[-1].extend(part)
        else:
            found.append(part)
    return [*found, rest]


def in_turn(first: Sequence[RowOrder], second: Sequence[RowOrder], ahead: int) -> list[int]:
    """Return an order that alternates the stretches of both halves, the first half `ahead` by so many."""
    found: list[int] = []
    for place in range(max(len(first), len(second) + ahead)):
        found += first[place] if place < len(first) else ()
        found += second[place - ahead] if 0 <= place - ahead < len(second) else ()
    return found


def _with_sums(both: Program, sums: range, order: RowOrder) -> Iterator[int]:
    """Yield `order` with each sum right after the last task that it needs."""
    position = {index: place for place, index in enumerate(order)}
    after: dict[int, list[int]] = {}
    for index in sums:
        after.setdefault(max(both.tasks[index].needs, key=position.__getitem__), []).append(index)
    for index in order:
        yield index
        yield from after.get(index, ())


def in_order(program: Program, order: RowOrder) -> Program:
    """Return `program` with its tasks in this order."""
    place = {index: at for at, index in enumerate(order)}
    place[-1] = -1  # of no task: the maker of an input, what is not waited for

    def moved(indices: Sequence[int]) -> tuple[int, ...]:
        return tuple(sorted(place[index] for index in indices))

    in_place = (program.tasks[index] for index in order)
    tasks = [replace(task, needs=moved(task.needs), launch=place[task.launch]) for task in in_place]
    buffers = [replace(one, maker=place[one.maker], users=moved(one.users)) for one in program.buffers]
    return Program(tuple(tasks), tuple(buffers))
