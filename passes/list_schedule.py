"""Order a program so that collectives start early, are waited for late, and compute runs in between.

In:    a `Program` and `Limits`.
Out:   a `Schedule`: a permutation that keeps every dependence and the order of the launches on each channel, never
       slower than the original order by `simulate`, within the limits on memory; and both timelines.
Never: changes a task; uses a clock, a hash or a rank: ties break by index, so every rank decides the same.

Algorithm: discrete events, time advances with each compute task. O(n log n) for an order; a fixed number of orders is
made for a window, and there are log n windows at most.
1. urgency(task) = the longest path from the task to the end, where a second of compute counts as `share` of a second on
   the wire. With a share of 1 this is the classic critical path. But all compute shares one stream, so time on it is no
   loss, and time in which the wire idles may be one: with a small share, what leads to a launch goes first.
2. A launch is issued as soon as it is ready and its channel's turn has come.
3. A wait is taken when its collective is through, or when nothing else is ready: ready work goes before waiting.
   But a task that runs past the end of a collective delays whatever is behind that wait, such as the next launch. If
   that is more urgent, a task that ends in time is taken instead; and if there is none, the compute stream may stand
   still until the wait, if that costs less than `patience` times the delay.
4. Among ready compute tasks the most urgent goes first, then the one that came first. Weight gradients lead to nothing,
   so they are left for the gaps.
5. A task that would break a limit on memory is passed over for the most urgent one that does not; if every one would,
   the earliest in the original order is taken, be it a wait.
6. While the best order breaks a limit on memory, orders are made anew with a smaller window: a task may run only so
   many places ahead of the first task that has not run. With a window of 0 this is the original order, so the limits
   are always kept. Windows are halved; only the ways (below) that were best without one are tried again.
Orders are made for several shares and several values of patience, 0 among them, and as if the network were slower by
each of `MARGINS`, until one exposes nothing even by the widest. Else the best by `simulate`, on the network as it is
and on the slowest one, is kept: collectives take longer now and then, what is to hide one takes less than estimated,
and a wait that can as well be taken later should be.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace

from farskip_compile.passes.live_memory import LiveMemory
from farskip_compile.passes.program import Program, Role, Timeline, Wires, makespan, simulate

CANDIDATES = 16
"""How many ready tasks are looked at for one that fits into memory; bounds the time per step."""

SHARES = (0.5, 1.0, 0.1)
"""What a second of compute counts on a path, in seconds on the wire. The one that is best most often comes first."""

PATIENCE = (0.0, 0.5, 2.0, float("inf"))
"""Seconds of standing still that one second of delay behind a wait is worth."""

MARGINS = (0.5, 0.2, 0.0)
"""Parts by which a collective may take longer than estimated without being exposed, if that costs nothing otherwise.
Estimates of kernels are up to a quarter off, so that no less than the widest is needed; where compute is too short for
it, orders made with a narrower one are better."""

KEPT, WORK = 4, 10_000
"""Of all ways to make an order, so many are tried with smaller windows, or as many as keep ways times tasks within
`WORK`: those that were best with the largest."""

NOTHING = 1e-6
"""Part of the time in which communication may be exposed in an order that needs no improvement."""


@dataclass(frozen=True)
class Limits:
    """Bounds on the memory that overlapping may cost."""

    memory_increase: float = 0.05
    """Peak bytes may grow by this part: of all that is alive, with parameters and other inputs."""
    in_flight_bytes: int = 5_000_000_000
    """Bytes that collectives in flight read and write, in all; a single collective is always allowed."""


@dataclass(frozen=True)
class Schedule:
    """An order of a program's tasks, and what it brings."""

    order: tuple[int, ...]
    before: Timeline
    after: Timeline
    window: int
    """Within which the order was found; 0: the original order stayed."""

    @property
    def changed(self) -> bool:
        """Whether any task moved."""
        return self.order != tuple(range(len(self.order)))


def list_schedule(program: Program, limits: Limits | None = None, usual: int | None = None) -> Schedule:
    """The best order found for `program`.

    Args:
        program: in its original order.
        limits: bounds on memory.
        usual: peak bytes that `limits` starts from; None: those of the original order. What that order itself holds is
            always allowed.
    """
    limits = limits or Limits()
    original = tuple(range(len(program.tasks)))
    before = simulate(program, original)
    unchanged = Schedule(original, before, before, window=0)
    if before.communication == 0.0:
        return unchanged
    usual = before.peak_bytes if usual is None else usual
    peak = max(int(usual * (1 + limits.memory_increase)), before.peak_bytes)
    flight = max(limits.in_flight_bytes, before.peak_in_flight_bytes)
    slow, *others = (_stretched(program, margin) for margin in MARGINS)
    ways = [
        (build, _urgency(build, share), patience)
        for build in (slow, *others)
        for share in SHARES
        for patience in PATIENCE
    ]
    best, least = unchanged, before.makespan + simulate(slow, original).makespan
    window = len(original)
    while window:
        lowest = float("inf")
        fits = False
        scores: list[float] = []
        for build, urgency, patience in ways:
            order = tuple(_Run(build, urgency, window, patience, peak, flight).order())
            seconds, slower = makespan(program, order), makespan(slow, order)
            scores.append(seconds + slower)
            if seconds + slower < lowest:
                lowest, fits = seconds + slower, False
            if seconds > before.makespan or seconds + slower >= least:
                continue
            after = simulate(program, order)
            if after.peak_bytes <= peak and after.peak_in_flight_bytes <= flight:
                best, least, fits = Schedule(order, before, after, window), seconds + slower, seconds + slower == lowest
                if simulate(slow, order).exposed <= NOTHING * slower:
                    return best
        if fits or lowest >= least:  # a smaller window would not bring more
            break
        window //= 2
        kept = max(KEPT, WORK // len(original))
        if len(ways) > kept:
            ranked = sorted(range(len(ways)), key=lambda way: (scores[way], way))
            ways = [ways[way] for way in sorted(ranked[:kept])]
    return best


def _stretched(program: Program, margin: float) -> Program:
    """`program` on a network that is slower by `margin`."""
    tasks = (replace(t, seconds=t.seconds * (1 + margin)) if t.role is Role.LAUNCH else t for t in program.tasks)
    return Program(tuple(tasks), program.buffers)


def _urgency(program: Program, share: float) -> list[float]:
    """The longest path from the start of each task to the end of the program; of compute, only `share` counts."""
    urgency = [0.0] * len(program.tasks)
    for index in range(len(program.tasks) - 1, -1, -1):
        task = program.tasks[index]
        urgency[index] += task.seconds if task.role is Role.LAUNCH else share * task.seconds
        for need in (*task.needs, task.launch) if task.role is Role.WAIT else task.needs:
            urgency[need] = max(urgency[need], urgency[index])
    return urgency


class _Run:
    """One pass of the list scheduler."""

    def __init__(
        self, program: Program, urgency: list[float], window: int, patience: float, peak: int, flight: int
    ) -> None:
        self.tasks = program.tasks
        self.urgency = urgency
        self.window = window
        self.patience = patience
        self.peak = peak
        self.flight = flight
        self.memory = LiveMemory(program)
        self.followers: list[list[int]] = [[] for _ in self.tasks]
        self.missing = [0] * len(self.tasks)
        turn: dict[str, int] = {}
        for index, task in enumerate(self.tasks):
            needs = set(task.needs)
            if task.role is Role.WAIT:
                needs.add(task.launch)
            elif task.role is Role.LAUNCH:
                if task.channel in turn:
                    needs.add(turn[task.channel])  # launches of one channel keep their order
                turn[task.channel] = index
            self.missing[index] = len(needs)
            for need in needs:
                self.followers[need].append(index)
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
