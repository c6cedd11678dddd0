"""One order of a program, built task by task: the list scheduler itself.

In:    the `Frame` of a program, which all of its orders share, and a `Way` to order it.
Out:   a permutation of the tasks that keeps every dependence and the order of the launches on each channel.
Never: judges an order; uses a clock, a hash or a rank: ties break by index, so every rank decides the same.

Algorithm: discrete events, time advances with each compute task. O(n log n).
1. A launch is issued as soon as it is ready and its channel's turn has come.
2. A wait is taken when its collective is through, or when nothing else is ready: ready work goes before waiting.
   But a task that runs past the end of a collective delays whatever is behind that wait, such as the next launch. If
   that is more urgent, a task that ends in time is taken instead; and if there is none, the compute stream may stand
   still until the wait, if that costs less than `patience` times the delay.
3. Among ready compute tasks the most urgent goes first, then the one that came first. Weight gradients lead to nothing,
   so they are left for the gaps.
4. A task that would break a limit on memory is passed over for the most urgent one that does not; if every one would,
   the earliest in the original order is taken, be it a wait.
5. A task may run only `window` places ahead of the first task that has not run: with 0 the original order stays.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from farskip_compile.passes.schedule.live_memory import LiveMemory, MemoryPlan
from farskip_compile.passes.schedule.program import Program, Role, Task, Wires, needs_of

CANDIDATES = 16
"""How many ready tasks are looked at for one that fits into memory; bounds the time per step."""


class Frame:
    """What all orders of a program share: who follows whom, and the plan of its memory."""

    def __init__(self, program: Program, needs: Sequence[set[int]] | None = None) -> None:
        """Of `program`; `needs` is `needs_of(program)`, if it is known already."""
        self.memory = MemoryPlan(program)
        self.followers: list[list[int]] = [[] for _ in program.tasks]
        self.missing = [0] * len(program.tasks)
        for index, before in enumerate(needs_of(program) if needs is None else needs):
            self.missing[index] = len(before)
            for need in before:
                self.followers[need].append(index)


@dataclass(frozen=True)
class Way:
    """How to order a program."""

    tasks: Sequence[Task]
    """Of the program; collectives may be given more time than they take."""
    urgency: Sequence[float]
    """By task index: what is to go first."""
    patience: float
    """Seconds of standing still that one second of delay behind a wait is worth."""


def make_order(frame: Frame, way: Way, window: int, peak: int, flight: int) -> tuple[int, ...]:
    """An order within a window, and as far as possible within `peak` bytes, of them `flight` in flight."""
    return tuple(_Run(frame, way, window, peak, flight).order())


class _Run:
    """One pass of the list scheduler."""

    def __init__(self, frame: Frame, way: Way, window: int, peak: int, flight: int) -> None:
        self.tasks, self.urgency, self.patience = way.tasks, way.urgency, way.patience
        self.window, self.peak, self.flight = window, peak, flight
        self.memory = LiveMemory(frame.memory)
        self.followers = frame.followers
        self.missing = frame.missing.copy()
        self.compute: list[tuple[float, int]] = []
        self.launches: list[int] = []
        self.waits: list[tuple[float, int]] = []
        self.late: list[int] = []  # ready, but beyond the window
        self.end: dict[int, float] = {}
        self.wires = Wires()
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
        elif task.role is Role.COMPUTE:
            heapq.heappush(self.compute, (-self.urgency[index], index))
        elif task.role is Role.LAUNCH:
            heapq.heappush(self.launches, index)
        else:
            heapq.heappush(self.waits, (self.end[task.launch], index))

    def _next(self) -> int:
        while self.late and self.late[0] - self.first <= self.window:
            self._ready(heapq.heappop(self.late))
        if self.launches and self._fits_in_flight(self.launches[0]):
            return heapq.heappop(self.launches)
        if self.waits and self.waits[0][0] <= self.now:
            return heapq.heappop(self.waits)[1]
        if self.compute:
            return self._fitting()
        if self.waits:
            return heapq.heappop(self.waits)[1]
        return heapq.heappop(self.launches)  # it does not fit, but there is nothing else

    def _fits_in_flight(self, index: int) -> bool:
        if self.memory.alive + self.memory.allocates[index] > self.peak and (self.waits or self.compute):
            return False
        flying = self.memory.flying
        return flying == 0 or flying + self.memory.held[index] <= self.flight

    def _fitting(self) -> int:
        """The task to run: of the most urgent ready compute tasks that fit into memory one, or a wait."""
        passed: list[tuple[float, int]] = []
        first = chosen = -1
        while self.compute and len(passed) < CANDIDATES:
            entry = heapq.heappop(self.compute)
            index = entry[1]
            passed.append(entry)
            if self.memory.alive + self.memory.allocates[index] > self.peak:
                continue
            first = index if first < 0 else first
            if not self._delays_a_wait(index, self.urgency[first]):
                chosen = index
                break
        if chosen < 0 and first >= 0:  # every one delays a wait that is more urgent
            gap = self.waits[0][0] - self.now
            idle = gap < self.patience * (self.tasks[first].seconds - gap)
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
        """Whether a task would run past the end of a collective behind which something is more urgent."""
        if not self.waits or self.patience == 0.0:
            return False
        end, wait = self.waits[0]
        return end < self.now + self.tasks[index].seconds and self.urgency[wait] > urgency

    def _ran(self, index: int) -> None:
        task = self.tasks[index]
        self.memory.run(index, task.launch if task.role is Role.WAIT else -1)
        if task.role is Role.LAUNCH:
            _, self.end[index] = self.wires.launch(self.now, task)
        else:
            if task.role is Role.WAIT:
                self.now = max(self.now, self.end[task.launch])
            self.now = self.wires.run(self.now, task.seconds)
        self.done[index] = True
        while self.first < len(self.tasks) and self.done[self.first]:
            self.first += 1
        for follower in self.followers[index]:
            self.missing[follower] -= 1
            if self.missing[follower] == 0:
                self._ready(follower)
