# SPDX-License-Identifier: Apache-2.0
"""Memory of an order: what is alive, what is in flight, and how an order that holds too much is made to hold less.

In:    a `Program`, and an order of its tasks, whole or task by task (`LiveMemory`).
Out:   bytes alive and in flight; from `lower_peak`, an order with less above a limit, summed over all places.
Never: asks what an order costs in time.

The list scheduler builds an order from the front and can't know that a task for which there is just enough room now
will soon have none, once a collective is in flight. `lower_peak` repairs that afterwards.

Algorithm of `lower_peak`: each move costs O(n), so the number of moves falls with the size of the program.
1. Find the place where most is alive.
2. Try three kinds of moves: the task there goes where less is alive; what makes a buffer that is only used later goes
   right before its first user; the last user of a buffer goes before the peak.
3. Make the move that leaves least above the limit, in all places together; of equal ones, that of the shortest task. A
   launch or a wait is moved only if no other move helps, since that costs overlap.
4. Repeat until nothing is above the limit, no move helps, or the moves are used up.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from farskip_compile.passes.schedule.program import Program, TaskRole, followers_of, needs_of

MOVES = 16
"""Moves of `lower_peak`, at most."""

WORK = 10_000
"""Tasks of all its moves together."""

BUFFERS = 8
"""Of the buffers that are alive at the peak, so many are looked at, the largest first."""


def live_bytes(program: Program, order: Sequence[int]) -> list[int]:
    """Bytes alive while each task of `order` runs: allocated before it, freed after it, or after the last one that
    joins it. What is written over another buffer takes its memory."""
    if not program.buffers or not len(order):
        return [0] * len(order)
    lifetimes = program.lifetimes
    places = lifetimes.places(order)
    first, last = lifetimes.first(places), lifetimes.last(places)
    ends = lifetimes.ends_of_functions(order)
    begins = first.copy()
    if over := _written_over(program, first.tolist(), lifetimes.last_user(places).tolist()):
        begins[over] = ends[first[over]] + 1
    change = np.zeros(len(order) + 1, dtype=np.int64)
    np.add.at(change, begins, lifetimes.sizes)
    freed = lifetimes.freed
    np.subtract.at(change, ends[last[freed]] + 1, lifetimes.sizes[freed])
    found: list[int] = np.cumsum(change[:-1]).tolist()
    return found


def _written_over(program: Program, first: Sequence[int], last_user: Sequence[int]) -> list[int]:
    """The buffers that are written over another one, each over one of its own: the place where they begin is that of
    its last user."""
    written: set[int] = set()
    found = []
    for number, over in program.lifetimes.over:
        for other in over:
            if last_user[other] == first[number] and not program.buffers[other].kept and other not in written:
                written.add(other)
                found.append(number)
                break
    return found


def bytes_of_launches(program: Program) -> dict[int, int]:
    """For each launch, the bytes that can't be freed while it is in flight: what it reads and makes."""
    held = {index: 0 for index, task in enumerate(program.tasks) if task.role is TaskRole.LAUNCH}
    for buffer in program.buffers:
        for index in {buffer.maker, *buffer.parts, *buffer.users} & held.keys():
            held[index] += buffer.size
    return held


def bytes_in_flight(program: Program, order: Sequence[int]) -> list[int]:
    """Bytes that collectives in flight read and write, after each task of `order`."""
    held = bytes_of_launches(program)
    waits: dict[int, int] = {}
    for place, index in enumerate(order):
        if program.tasks[index].role is TaskRole.WAIT:
            waits.setdefault(program.tasks[index].launch, place)
    flying, total, landing = [], 0, dict[int, int]()
    for place, index in enumerate(order):
        if index in held:
            total += held[index]
            landing[waits.get(index, len(order))] = landing.get(waits.get(index, len(order)), 0) + held[index]
        total -= landing.get(place, 0)
        flying.append(total)
    return flying


class MemoryPlan:
    """What all orders of a program share: which task allocates how much, and which buffers it uses."""

    def __init__(self, program: Program) -> None:
        self.allocates = [0] * len(program.tasks)
        self.uses: list[list[int]] = [[] for _ in program.tasks]
        self.left: list[int] = []
        self.sizes: list[int] = []
        self.over: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
        """By task: the sizes of what it may write over other buffers, and these."""
        self.joint: dict[int, list[tuple[int, int]]] = {}
        """By task: the numbers and sizes of what it makes a part of."""
        self.held = bytes_of_launches(program)
        self.joins = [task.joins for task in program.tasks]
        self.inputs = 0
        for number, buffer in enumerate(program.buffers):
            if buffer.parts:
                for index in {buffer.maker, *buffer.parts}:
                    self.joint.setdefault(index, []).append((number, buffer.size))
            elif buffer.maker >= 0:
                self.allocates[buffer.maker] += buffer.size
                if over := tuple(number for number in buffer.over if not program.buffers[number].kept):
                    self.over.setdefault(buffer.maker, []).append((buffer.size, over))
            else:
                self.inputs += buffer.size
            users = {index for index in (buffer.maker, *buffer.parts, *buffer.users) if index >= 0}
            self.left.append(len(users) + buffer.kept)
            self.sizes.append(buffer.size)
            for index in users:
                self.uses[index].append(number)


class LiveMemory:
    """`live_bytes` and `bytes_in_flight` of an order that is being built, task by task."""

    def __init__(self, plan: MemoryPlan) -> None:
        self.allocates, self.uses, self.sizes, self.over = plan.allocates, plan.uses, plan.sizes, plan.over
        self.joint, self.joins = plan.joint, plan.joins
        self.begun: set[int] = set()
        """Of what has parts: allocated."""
        self.left = plan.left.copy()
        self.held = plan.held.copy()
        self.alive, self.flying = plan.inputs, 0
        self.ending = 0
        """Bytes that are free at the end of the function that tasks have joined, the last one included."""

    def needs(self, index: int) -> int:
        """Bytes that a task needs to run now, beside those that are alive."""
        return self._needs(index)[0]

    def afterwards(self, index: int) -> tuple[int, int]:
        """Bytes by which a task that runs now changes what is alive after it, and those that it needs for that."""
        needed, taken = self._needs(index)
        return needed - self._frees(index, taken), needed

    def _frees(self, index: int, taken: Collection[int]) -> int:
        return sum(self.sizes[number] for number in self.uses[index] if self.left[number] == 1 and number not in taken)

    def _needs(self, index: int) -> tuple[int, set[int]]:
        """The same, and the buffers that are written over."""
        needed = self.allocates[index] - (0 if self.joins[index] else self.ending)
        needed += sum(size for number, size in self.joint.get(index, ()) if number not in self.begun)
        taken: set[int] = set()
        for size, over in self.over.get(index, ()):
            # only this task is left to use it
            free = next((number for number in over if self.left[number] == 1 and number not in taken), -1)
            if free >= 0:
                taken.add(free)
                needed -= size
        return needed, taken

    def run(self, index: int, launch: int) -> None:
        """Account for a task that runs; `launch` is the collective that it waits for, or -1."""
        needed, taken = self._needs(index)
        self.alive += needed
        self.begun.update(number for number, _ in self.joint.get(index, ()))
        free = self._frees(index, taken)
        for number in self.uses[index]:
            self.left[number] -= 1
        if self.joins[index]:
            self.ending += free
        else:
            self.ending = 0
            self.alive -= free
        self.flying += self.held.get(index, 0)
        if launch >= 0:
            self.flying -= self.held.pop(launch, 0)


def lower_peak(program: Program, order: Sequence[int], limit: int) -> tuple[int, ...]:
    """The order with tasks moved so that `live_bytes` stays within `limit`, as far as that is possible.

    Less may be above the limit in all places together, and yet more in one of them.
    """
    needs = needs_of(program)
    followers = followers_of(needs)
    best = list(order)
    above = _above(live := live_bytes(program, best), limit)
    for _ in range(min(MOVES, max(1, WORK // max(len(best), 1)))):
        if not above:
            break
        found: tuple[tuple[bool, int, float, int], list[int]] | None = None
        for old, new in _moves(program, best, live, needs, followers):
            moved = best.copy()
            moved.insert(new, moved.pop(old))
            left = _above(live_bytes(program, moved), limit)
            task = program.tasks[best[old]]
            merit = task.role is not TaskRole.COMPUTE, left, task.seconds, abs(new - old)
            if left < above and (found is None or merit < found[0]):
                found = merit, moved
        if found is None:
            break
        (_, above, _, _), best = found
        live = live_bytes(program, best)
    return tuple(best)


def _above(live: Sequence[int], limit: int) -> int:
    return sum(one - limit for one in live if one > limit)


def _moves(
    program: Program,
    order: Sequence[int],
    live: Sequence[int],
    needs: Sequence[set[int]],
    followers: Sequence[Sequence[int]],
) -> Iterator[tuple[int, int]]:
    """Old and new place of one task, for each move; the new place as if the task had been taken out."""
    position = {index: place for place, index in enumerate(order)}
    peak = max(range(len(live)), key=live.__getitem__)

    def first(index: int) -> int:
        return 1 + max((position[need] for need in needs[index]), default=-1)

    def last(index: int) -> int:
        return min((position[follower] for follower in followers[index]), default=len(order)) - 1

    here = order[peak]
    for places in (range(first(here), peak), range(peak + 1, last(here) + 1)):
        if places:
            yield peak, min(places, key=live.__getitem__)
    alive = []
    for buffer in program.buffers:
        if buffer.size and not buffer.kept and buffer.maker >= 0 and position[buffer.maker] <= peak:
            freer = max((buffer.maker, *buffer.parts, *buffer.users), key=position.__getitem__)
            if position[freer] > peak:
                alive.append((buffer, freer))
    for buffer, freer in heapq.nlargest(BUFFERS, alive, key=lambda one: one[0].size):
        if buffer.maker != here and last(buffer.maker) > peak:
            yield position[buffer.maker], last(buffer.maker)
        if first(freer) <= peak:
            yield position[freer], peak
