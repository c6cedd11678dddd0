# SPDX-License-Identifier: Apache-2.0
"""One order of a program, built task by task: the list scheduler itself.

In:    the `DependencyGraph` of a program, which all of its orders share, and a `Heuristic` to order it by.
Out:   a permutation of the tasks that keeps every dependence and the order of the launches on each channel.
Never: judges an order; uses a clock, a hash or a rank: ties break by index, so every rank decides the same.

Algorithm: discrete events; time advances with each compute task. O(n log n).
1. Launch first: a launch is issued as soon as it is ready; each channel keeps its order.
2. Wait late: a wait is taken when its collective has finished, or when nothing else is ready. But a task that runs past
   the end of a collective delays whatever follows that wait, such as the next launch. If that is more urgent, a task
   that ends in time is taken instead; if there is none, the compute stream may stand still until the wait, if that
   costs less than `wait_bias` times the delay.
3. Among ready compute tasks the most urgent goes first, then the one that came first. Weight gradients lead to nothing,
   so they are left for the gaps.
4. A task that would break a limit on memory is passed over for the most urgent one that does not; if every one would,
   the earliest in the original order is taken, be it a wait.
5. A task may run only `window` places ahead of the first task that has not run: with 0 the original order stays.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from farskip_compile.passes.schedule.memory import LiveMemory, MemoryPlan
from farskip_compile.passes.schedule.program import Program, TaskRole, followers_of, needs_of
from farskip_compile.passes.schedule.timeline import NetworkChannels

CANDIDATES = 16
"""How many ready tasks are looked at for one that fits into memory; bounds the time per step."""

COMPUTE_WEIGHT = 0.5
"""Seconds on the wire that a second of compute counts for in the urgency of a task, its longest path to the end. With 1
this is the classic critical path. But all compute shares one stream, so time on it is not lost, while time in which the
wire idles may be: with a smaller weight, what leads to a launch goes first."""


class Heuristic(NamedTuple):
    """What an order goes by."""

    wait_bias: float
    """Seconds of standing still that one second of delay after a wait is worth."""
    network_slack: float
    """The order is made as if collectives took longer by this fraction."""


class DependencyGraph:
    """What all orders of a program share: who needs whom, the plan of its memory, and urgencies."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.needs = needs_of(program)
        self.followers = followers_of(self.needs)
        self.memory = MemoryPlan(program)
        self._slower: dict[float, tuple[Program, list[float]]] = {}

    def slower(self, slack: float) -> tuple[Program, list[float]]:
        """The program on a network that is slower by `slack`; and by task, the longest path from there to the end.

        A launch is on the path of the next one on its channel, which has to wait for it.
        """
        if slack not in self._slower:
            program = slower_network(self.program, slack)
            urgency = [0.0] * len(program.tasks)
            for index in range(len(urgency) - 1, -1, -1):
                task = program.tasks[index]
                urgency[index] += task.seconds if task.role is TaskRole.LAUNCH else COMPUTE_WEIGHT * task.seconds
                for need in self.needs[index]:
                    urgency[need] = max(urgency[need], urgency[index])
            self._slower[slack] = program, urgency
        return self._slower[slack]


def slower_network(program: Program, slack: float) -> Program:
    """`program` with collectives that take longer by the fraction `slack`."""
    if slack == 0.0:
        return program
    tasks = (replace(t, seconds=t.seconds * (1 + slack)) if t.role is TaskRole.LAUNCH else t for t in program.tasks)
    return Program(tuple(tasks), program.buffers)


def make_order(
    graph: DependencyGraph, heuristic: Heuristic, window: int, memory: int, in_flight: int
) -> tuple[int, ...]:
    """An order within a window, and as far as possible within `memory` bytes, of them `in_flight` in flight."""
    return tuple(_Run(graph, heuristic, window, memory, in_flight).order())


class _Run:
    """One pass of the list scheduler."""

    def __init__(self, graph: DependencyGraph, heuristic: Heuristic, window: int, memory: int, in_flight: int) -> None:
        program, self.urgency = graph.slower(heuristic.network_slack)
        self.tasks = program.tasks
        self.wait_bias = heuristic.wait_bias
        self.window, self.memory_limit, self.flight_limit = window, memory, in_flight
        self.memory = LiveMemory(graph.memory)
        self.followers = graph.followers
        self.missing = [len(before) for before in graph.needs]
        self.compute: list[tuple[float, int]] = []
        self.launches: list[int] = []
        self.waits: list[tuple[float, int]] = []
        self.late: list[int] = []  # ready, but beyond the window
        self.end: dict[int, float] = {}
        self.network = NetworkChannels()
        self.done = [False] * len(self.tasks)
        self.first = 0
        self.now = 0.0

    def order(self) -> Iterator[int]:
        """The tasks, one after another."""
        for index in range(len(self.tasks)):
            if self.missing[index] == 0:
                self._ready(index)
        for _ in self.tasks:
            index = self._next()
            yield index
            self._ran(index)

    def _ready(self, index: int) -> None:
        task = self.tasks[index]
        if index - self.first > self.window:
            heapq.heappush(self.late, index)
        elif task.role is TaskRole.COMPUTE:
            heapq.heappush(self.compute, (-self.urgency[index], index))
        elif task.role is TaskRole.LAUNCH:
            heapq.heappush(self.launches, index)
        else:
            heapq.heappush(self.waits, (self.end[task.launch], index))

    def _next(self) -> int:
        while self.late and self.late[0] - self.first <= self.window:  # 5.
            self._ready(heapq.heappop(self.late))
        if self.launches and self._fits_in_flight(self.launches[0]):  # 1.
            return heapq.heappop(self.launches)
        if self.waits and self.waits[0][0] <= self.now:  # 2.
            return heapq.heappop(self.waits)[1]
        if self.compute:
            return self._compute_or_wait()
        if self.waits:
            return heapq.heappop(self.waits)[1]
        return heapq.heappop(self.launches)  # it does not fit, but there is nothing else

    def _fits(self, index: int) -> bool:
        return self.memory.alive + self.memory.needs(index) <= self.memory_limit

    def _fits_in_flight(self, index: int) -> bool:
        if not self._fits(index) and (self.waits or self.compute):
            return False
        flying = self.memory.flying
        return flying == 0 or flying + self.memory.held[index] <= self.flight_limit

    def _compute_or_wait(self) -> int:
        """The most urgent ready compute task that fits into memory and delays no wait, or a wait: steps 2 to 4."""
        passed: list[tuple[float, int]] = []
        first = chosen = -1
        while self.compute and len(passed) < CANDIDATES:
            entry = heapq.heappop(self.compute)
            index = entry[1]
            passed.append(entry)
            if not self._fits(index):
                continue
            first = index if first < 0 else first
            if not self._delays_a_wait(index, self.urgency[first]):
                chosen = index
                break
        if chosen < 0 and first >= 0:  # every one delays a wait that is more urgent
            gap = self.waits[0][0] - self.now
            idle = gap < self.wait_bias * (self.tasks[first].seconds - gap)
            chosen = self.waits[0][1] if idle else first
        elif chosen < 0:  # none fits into memory: the earliest, be it a wait
            chosen = min(index for _, index in [*passed, *self.waits[:1]])
        if self.waits and chosen == self.waits[0][1]:
            heapq.heappop(self.waits)
        for entry in passed:
            if entry[1] != chosen:
                heapq.heappush(self.compute, entry)
        return chosen

    def _delays_a_wait(self, index: int, urgency: float) -> bool:
        """Whether a task would run past the end of a collective whose wait is followed by something more urgent."""
        if not self.waits or self.wait_bias == 0.0:
            return False
        end, wait = self.waits[0]
        return end < self.now + self.tasks[index].seconds and self.urgency[wait] > urgency

    def _ran(self, index: int) -> None:
        task = self.tasks[index]
        self.memory.run(index, task.launch if task.role is TaskRole.WAIT else -1)
        if task.role is TaskRole.LAUNCH:
            _, self.end[index] = self.network.launch(self.now, task)
        else:
            if task.role is TaskRole.WAIT:
                self.now = max(self.now, self.end[task.launch])
            self.now = self.network.run(self.now, task.seconds)
        self.done[index] = True
        while self.first < len(self.tasks) and self.done[self.first]:
            self.first += 1
        for follower in self.followers[index]:
            self.missing[follower] -= 1
            if self.missing[follower] == 0:
                self._ready(follower)
