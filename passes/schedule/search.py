"""Order a program so that collectives start early, are waited for late, and compute runs in between.

In:    a `Program` and `Limits`.
Out:   a `Schedule`: a permutation that keeps every dependence and the order of the launches on each channel, never
       slower than the original order by `simulate`, within the limits on memory; and both timelines.
Never: changes a task; uses a clock, a hash or a rank: ties break by index, so every rank decides the same.

Algorithm: `list_scheduler` makes one order in O(n log n); here several are made, in several ways, and the best is kept.
1. A way has three settings. `share`: urgency(task) is the longest path from it to the end, where a second of compute
   counts as so much of a second on the wire. With 1 this is the classic critical path; but all compute shares one
   stream, so time on it is no loss, and time in which the wire idles may be one: with a small share, what leads to a
   launch goes first. `patience`: see `list_scheduler`. `margin`: the order is made as if the network were slower by it.
   What the caller knows already, such as the order of engines with hand-written overlap, is looked at first.
2. The best is that of the least makespan by `simulate`, on the network as it is and on the slowest one together:
   collectives take longer now and then, what is to hide one takes less than estimated, and a wait that can as well be
   taken later should be. What holds more memory must save more than next to nothing. An order that exposes nothing on
   either ends the search.
3. Small programs are ordered in all ways. Of others, one setting after another is decided: the rest stay as they were
   best so far. Large ones are made smaller first (`coarsen`).
4. An order that holds too much has some of its tasks moved (`lower_peak`). While the best order still breaks a limit on
   memory, orders are made anew within half the window: a task may run only so many places ahead of the first task that
   has not run. With a window of 0 this is the original order, so the limits are always kept. Only the ways that were
   best in the window before are tried again. There are log n windows at most.
5. If the best order takes most of what the limit allows, all is done once more with less, since what Inductor
   generates holds more than its account says now and then (see `docs/benchmarks.md`). An order that is as fast, or next
   to it, is taken.
6. Last, memory that the best order does not need to be as fast is given back, again by moves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from farskip_compile.passes.schedule.coarsen import coarsen
from farskip_compile.passes.schedule.list_scheduler import Frame, Way, make_order
from farskip_compile.passes.schedule.lower_peak import lower_peak
from farskip_compile.passes.schedule.program import (
    Flight,
    Program,
    Role,
    Timeline,
    bytes_in_flight,
    flights,
    live_bytes,
    needs_of,
    played,
    simulate,
)

SHARES = (0.5, 1.0, 0.1)
"""What a second of compute counts on a path, in seconds on the wire. The one that is best most often comes first."""

PATIENCE = (0.0, 0.5, 2.0, float("inf"))
"""Seconds of standing still that one second of delay behind a wait is worth."""

MARGINS = (0.5, 0.2, 0.0)
"""Parts by which a collective may take longer than estimated without being exposed, if that costs nothing otherwise.
Estimates of kernels are up to a quarter off, so that no less than the widest is needed; where compute is too short for
it, orders made with a narrower one are better."""

WORK = 10_000
"""Tasks that are placed in all orders of a window together; if that is not enough for all ways, some are left out."""

LARGE = 2000
"""Tasks from which on a program is made smaller. Groups leave less choice where memory is scarce."""

REPAIRS = 40_000
"""Tasks of all orders that are made to hold less, together; two orders at least."""

KEPT = 4
"""Of all ways, so many at least are tried with a smaller window."""

WORTH = 0.003
"""Part of the time that an order must save over the best one so far if it holds more memory."""

MODEST = (0.6, 0.35)
"""Parts of the increase in memory that an order should do with. The first one within which one is as fast is kept to:
where memory is scarce, orders are not the better the more of it they may take."""

NOTHING = 1e-6
"""Part of the time in which communication may be exposed in an order that needs no improvement."""

SAME = 1e-9
"""Part by which two sums of the same times may differ."""

Setting = tuple[int, int, int]
"""Of a way: which share, which patience, which margin."""

WAYS: tuple[Setting, ...] = tuple(
    (share, patience, margin)
    for margin, share, patience in product(range(len(MARGINS)), range(len(SHARES)), range(len(PATIENCE)))
)


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
    """Within which the order was found; 0: the original order stayed, but for memory that was given back."""
    usual: int = 0
    """Peak bytes that the limit on memory started from."""
    flights: tuple[Flight, ...] = ()
    """The collectives in this order."""

    @property
    def changed(self) -> bool:
        """Whether any task moved."""
        return self.order != tuple(range(len(self.order)))


def list_schedule(
    program: Program,
    limits: Limits | None = None,
    usual: int | None = None,
    begin_with: Sequence[tuple[int, ...]] = (),
) -> Schedule:
    """The best order found for `program`.

    Args:
        program: in its original order.
        limits: bounds on memory.
        usual: peak bytes that `limits` starts from, unless the original order holds less. What that order holds is
            always allowed.
        begin_with: orders that somebody knows already; each keeps every dependence.
    """
    before = simulate(program, range(len(program.tasks)))
    if before.communication == 0.0:
        order = tuple(range(len(program.tasks)))
        return Schedule(order, before, before, 0, before.peak_bytes, flights(program, order))
    return _Search(program, before, limits or Limits(), usual).run(begin_with)


class _Search:
    """The orders of one program that have been tried, and the best of them."""

    def __init__(self, program: Program, before: Timeline, limits: Limits, usual: int | None) -> None:
        self.whole = program
        self.before = before
        self.best = tuple(range(len(program.tasks)))
        self.window = 0
        self.held = before.peak_bytes
        self.usual = before.peak_bytes if usual is None else min(usual, before.peak_bytes)
        self.increase = limits.memory_increase
        self._allow(self.increase)
        self.flight = max(limits.in_flight_bytes, before.peak_in_flight_bytes)
        self.coarse = coarsen(program) if len(program.tasks) > LARGE else None
        self.program = program if self.coarse is None else self.coarse.program
        self.needs = needs_of(self.program)
        self.frame = Frame(self.program, self.needs)
        self.slower = [_stretched(self.program, margin) for margin in MARGINS]
        self.urgencies: dict[tuple[int, int], list[float]] = {}
        self.slow = _stretched(program, MARGINS[0])
        self.slowest = before.makespan
        """Seconds that no order may take longer than: those of the original one, or of one that the caller knows."""
        self.least = self.unordered = before.makespan + played(self.slow, self.best)[0]
        self.repairs = 0
        self.scores: dict[Setting, float] = {}
        """Of the present window."""
        self.fits = False
        """Whether the best of the present window keeps the limits."""
        self.done = False

    def run(self, begin_with: Sequence[tuple[int, ...]] = ()) -> Schedule:
        """The best order that keeps the limits."""
        for order in begin_with:
            self._begin_with(order)
        few = len(WAYS) * len(self.program.tasks) <= WORK
        self._search(iter(WAYS) if few else self._one_by_one())
        self._do_with_less()
        self._give_back()
        unchanged = self.best == tuple(range(len(self.best)))
        after = self.before if unchanged else simulate(self.whole, self.best)
        return Schedule(self.best, self.before, after, self.window, self.usual, flights(self.whole, self.best))

    def _begin_with(self, order: tuple[int, ...]) -> None:
        """Keep `order` if it is better than the best one and within the limits."""
        held = max(live_bytes(self.whole, order))
        if held > self.limit:
            order = lower_peak(self.whole, order, self.limit)
            held = max(live_bytes(self.whole, order))
        seconds = played(self.whole, order)[0]
        score = seconds + played(self.slow, order)[0]
        fits = held <= self.peak and max(bytes_in_flight(self.whole, order)) <= self.flight
        if fits and seconds <= self.slowest and score < self.least:
            self.best, self.least, self.held, self.window = order, score, held, len(order)
            self.slowest = seconds * (1 + SAME)

    def _allow(self, increase: float) -> None:
        self.limit = int(self.usual * (1 + increase))
        self.peak = max(self.limit, self.before.peak_bytes)

    def _search(self, ways: Iterator[Setting]) -> None:
        """Try windows until a smaller one would not bring more."""
        window = len(self.program.tasks)
        self.repairs, self.done = max(2, REPAIRS // max(len(self.whole.tasks), 1)), False
        while window:
            self.scores, self.fits = {}, False
            for way in ways:
                self._try(way, window)
                if self.done:
                    break
            if self.done or self.fits or min(self.scores.values()) >= self.least:
                break
            ways = self._best_ways()
            window //= 2

    def _best_ways(self) -> Iterator[Setting]:
        """Of the present window."""
        most = max(KEPT, WORK // len(self.program.tasks))
        return iter(sorted(self.scores, key=lambda way: (self.scores[way], way))[:most])

    def _do_with_less(self) -> None:
        """The best order within a part of the increase, if there is one that is as fast."""
        found = self.best, self.least, self.held, self.window
        for part in MODEST:
            self._allow(part * self.increase)
            if self.held <= self.peak:
                break
            self.best, self.least = tuple(range(len(self.best))), self.unordered
            self.held, self.window = self.before.peak_bytes, 0
            self._search(self._best_ways())
            if self.held <= self.peak and self.least <= (1 + WORTH) * found[1]:
                break
            self.best, self.least, self.held, self.window = found

    def _give_back(self) -> None:
        """Memory that the best order does not need to be as fast."""
        if self.held > self.usual:
            order = lower_peak(self.whole, self.best, self.usual)
            seconds, slower = played(self.whole, order)[0], played(self.slow, order)[0]
            held = max(live_bytes(self.whole, order))  # less above what is usual may still be more in one place
            if held < self.held and seconds <= self.slowest and seconds + slower <= self.least:
                self.best = order

    def _one_by_one(self) -> Iterator[Setting]:
        """Each setting in turn, with the others as they were best so far."""
        for place, values in enumerate((SHARES, PATIENCE, MARGINS)):
            best = min(self.scores, key=lambda way: (self.scores[way], way), default=(0, 0, 0))
            for value in range(len(values)):
                way = (*best[:place], value, *best[place + 1 :])
                if way not in self.scores:
                    yield way  # type: ignore[misc]

    def _try(self, way: Setting, window: int) -> None:
        share, patience, margin = way
        tasks = self.slower[margin].tasks
        if (share, margin) not in self.urgencies:
            self.urgencies[share, margin] = _urgency(self.slower[margin], self.needs, SHARES[share])
        urgency = self.urgencies[share, margin]
        order = make_order(self.frame, Way(tasks, urgency, PATIENCE[patience]), window, self.peak, self.flight)
        (seconds, _), (slower, exposed) = played(self.program, order), played(self.slower[0], order)
        score = seconds + slower
        lowest = score < min(self.scores.values(), default=float("inf"))
        self.scores[way] = score
        self.fits &= not lowest
        if seconds > self.slowest or score >= self.least:
            return
        whole = order if self.coarse is None else self.coarse.expand(order)
        held = max(live_bytes(self.whole, whole))
        if held > self.limit and lowest and self.repairs:
            self.repairs -= 1
            whole = lower_peak(self.whole, whole, self.limit)
            held = max(live_bytes(self.whole, whole))
            (seconds, _), (slower, exposed) = played(self.whole, whole), played(self.slow, whole)
            score = seconds + slower
            if seconds > self.slowest or score >= self.least:
                return
        if held > self.peak or max(bytes_in_flight(self.whole, whole)) > self.flight:
            return
        self.fits |= lowest
        if held > self.held and score > (1 - WORTH) * self.least:
            return
        self.best, self.least, self.held, self.window = whole, score, held, window
        self.done = exposed <= NOTHING * slower


def _stretched(program: Program, margin: float) -> Program:
    """`program` on a network that is slower by `margin`."""
    if margin == 0.0:
        return program
    tasks = (replace(t, seconds=t.seconds * (1 + margin)) if t.role is Role.LAUNCH else t for t in program.tasks)
    return Program(tuple(tasks), program.buffers)


def _urgency(program: Program, needs: Sequence[set[int]], share: float) -> list[float]:
    """The longest path from the start of each task to the end of the program; of compute, only `share` counts.

    A launch is on the path of the next one on its channel, which has to wait for its turn.
    """
    urgency = [0.0] * len(program.tasks)
    for index in range(len(program.tasks) - 1, -1, -1):
        task = program.tasks[index]
        urgency[index] += task.seconds if task.role is Role.LAUNCH else share * task.seconds
        for need in needs[index]:
            urgency[need] = max(urgency[need], urgency[index])
    return urgency
