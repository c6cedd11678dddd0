# SPDX-License-Identifier: Apache-2.0
"""Order a program so that collectives start early, are awaited late, and compute runs in between.

In:    a `Program` and `MemoryLimits`.
Out:   a `Schedule`: a permutation that keeps every dependence and the order of the launches on each channel, never
       slower by `simulate` than the order to fall back on, within the limits on memory; and both timelines.
Never: changes a task; uses a clock, a hash or a rank: ties break by index, so every rank decides the same.

Algorithm: `list_scheduler` makes one order in O(n log n); here several are made, by several heuristics, and the best is
kept. What each part earns is in `docs/benchmarks.md`.
0. What is fallen back on is the original order; where that holds too much, the one that holds least of those that the
   caller knows.
1. Orders that the caller knows, such as that of engines with hand-written overlap, are looked at first.
2. An order is made by each heuristic. Large programs are made smaller before that (`coarsen`).
3. The best order has the least makespan on the network as it is and on the slowest one together: collectives take
   longer now and then, what is to hide one takes less than estimated, and a wait that can as well be taken later should
   be. An order that holds more memory must save more than next to nothing. One that exposes nothing on the slowest
   network ends the search.
4. An order that holds too much has some of its tasks moved (`lower_peak`). While the best order still breaks a limit on
   memory, orders are made anew within half the window: a task may run only so many places ahead of the first task that
   has not run. With a window of 0 this is the original order, so the limits are always kept. There are log n windows at
   most.
5. If the best order takes most of what the limit allows, and the original one did not break it, all is done once more
   with less. An order that is as fast, or next to it, is taken.
6. The gaps that the best order has left are filled, as far as possible (`fill`).
7. Last, memory that the best order does not need to be as fast is given back, again by moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

from farskip_compile.passes.schedule.coarsen import coarsen
from farskip_compile.passes.schedule.fill import fill_gaps
from farskip_compile.passes.schedule.list_scheduler import DependencyGraph, Heuristic, make_order, slower_network
from farskip_compile.passes.schedule.memory import bytes_in_flight, live_bytes, lower_peak
from farskip_compile.passes.schedule.program import Program, bytes_leaving
from farskip_compile.passes.schedule.timeline import ScheduledFlight, Timeline, flights, run_timeline, simulate

WAIT_BIASES = (0.0, 2.0)

NETWORK_SLACKS = (0.5, 0.2, 0.0)
"""Estimates of kernels are up to a quarter off, which takes the widest; where compute is too short for it, orders made
with a narrower one are better."""

HEURISTICS = tuple(Heuristic(bias, slack) for slack, bias in product(NETWORK_SLACKS, WAIT_BIASES))

LARGE = 2000
"""Tasks from which on a program is made smaller. Groups leave less choice where memory is scarce."""

REPAIRS = 40_000
"""Tasks of all orders that are made to hold less, together; two orders at least."""

WORTH = 0.003
"""Fraction of the time that an order must save over the best one so far if it holds more memory."""

MODEST = (0.6, 0.35)
"""Fractions of the increase in memory that an order should make do with. The first one within which an order is as fast
is kept to: where memory is scarce, orders do not get better the more of it they may take."""

NOTHING = 1e-6
"""Fraction of the time in which communication may be exposed in an order that needs no improvement."""

LATE = 0.1
"""Of the seconds that what leaves needs after the end: the next graph hides most of them, but not always all."""

SAME = 1e-9
"""Fraction by which two sums of the same times may differ."""


@dataclass(frozen=True)
class MemoryLimits:
    """Bounds on the memory that overlapping may cost."""

    memory_increase: float = 0.05
    """Fraction by which peak bytes may grow: of all that is alive, with parameters and other inputs."""
    in_flight_bytes: int = 5_000_000_000
    """Bytes that collectives in flight read and write, in all; a single collective is always allowed."""
    beside: int = 0
    """Bytes that are alive meanwhile and that the program does not know of, such as the parameters of other layers; the
    fraction is of these, too."""

    def peak(self, baseline: int, fraction: float = 1.0) -> int:
        """Bytes that may be alive at most, where `baseline` were, if this fraction of the increase is taken."""
        return int(baseline + fraction * self.memory_increase * (baseline + self.beside))


@dataclass(frozen=True)
class Schedule:
    """An order of a program's tasks, and what it brings."""

    order: tuple[int, ...]
    before: Timeline
    after: Timeline
    window: int
    """Within which the order was found; 0: the original order stayed, but for memory that was given back."""
    baseline_peak: int = 0
    """Peak bytes that the limit on memory started from."""
    flights: tuple[ScheduledFlight, ...] = ()
    """The collectives in this order."""

    @property
    def changed(self) -> bool:
        """Whether any task moved."""
        return self.order != tuple(range(len(self.order)))


def list_schedule(
    program: Program,
    limits: MemoryLimits | None = None,
    baseline_peak: int | None = None,
    begin_with: Sequence[tuple[int, ...]] = (),
) -> Schedule:
    """The best order found for `program`.

    `limits` on memory start from `baseline_peak`, in bytes, unless the original order holds less, and from what this
    program leaves to the next one, which will hold it besides (`bytes_leaving`); what the order to fall back on holds
    is always allowed. `begin_with` are orders that are known already; each keeps every dependence, and the order of the
    launches on each channel.
    """
    limits = limits or MemoryLimits()
    original = tuple(range(len(program.tasks)))
    before = simulate(program, original)
    if before.communication == 0.0:
        return Schedule(original, before, before, 0, before.peak_bytes, flights(program, original))
    start = _to_fall_back_on(program, before, limits, baseline_peak, begin_with)  # 0.
    search = _Search(program, before, limits, baseline_peak, start)
    search.run(begin_with, with_less=start == original)
    order = search.best.order
    after = before if order == original else simulate(program, order)
    return Schedule(order, before, after, search.best.window, search.baseline, flights(program, order))


def _to_fall_back_on(
    program: Program,
    before: Timeline,
    limits: MemoryLimits,
    baseline_peak: int | None,
    known: Sequence[tuple[int, ...]],
) -> tuple[int, ...]:
    """The original order, or if that holds too much, the known one that holds least."""
    original = tuple(range(len(program.tasks)))
    if baseline_peak is None or before.peak_bytes <= limits.peak(baseline_peak + bytes_leaving(program)):
        return original
    flight = max(limits.in_flight_bytes, before.peak_in_flight_bytes)
    fit = [order for order in known if max(bytes_in_flight(program, order)) <= flight]
    return min([original, *fit], key=lambda order: max(live_bytes(program, order)))


class _Cost(NamedTuple):
    """Of an order."""

    seconds: float
    score: float
    """Seconds on the network as it is and on the slowest one together, and a part of those in which it is late."""
    hidden: bool
    """Whether it exposes nothing on the slowest one."""


def _cost(program: Program, slow: Program, order: Sequence[int]) -> _Cost:
    run, slower = run_timeline(program, order), run_timeline(slow, order)
    score = run.makespan + slower.makespan + LATE * (run.late + slower.late)
    return _Cost(run.makespan, score, max(slower.exposed, slower.late) <= NOTHING * slower.makespan)


@dataclass(frozen=True)
class _Found:
    """An order that keeps the limits."""

    order: tuple[int, ...]
    score: float
    held: int
    """Peak bytes."""
    window: int


class _Search:
    """The orders of one program that have been tried, and the best of them."""

    def __init__(
        self,
        program: Program,
        before: Timeline,
        limits: MemoryLimits,
        baseline_peak: int | None,
        start: tuple[int, ...],
    ) -> None:
        self.program = program
        self.slow = slower_network(program, NETWORK_SLACKS[0])
        cost = _cost(program, self.slow, start)
        self.slowest = cost.seconds
        """Seconds that no order may take longer than: those of the one to fall back on, or of one that is known."""
        self.fallback = _Found(start, cost.score, self._held(start), 0)
        self.best = self.fallback
        self.baseline = before.peak_bytes if baseline_peak is None else min(baseline_peak, before.peak_bytes)
        self.limits = limits
        self.leaving = bytes_leaving(program)
        self._allow(1.0)
        self.flight = max(limits.in_flight_bytes, before.peak_in_flight_bytes)
        self.coarse = coarsen(program) if len(program.tasks) > LARGE else None
        self.graph = DependencyGraph(program if self.coarse is None else self.coarse.program)
        self.repairs = 0
        self.lowest = float("inf")
        """Score in the present window."""
        self.fits = False
        """Whether the order with that score keeps the limits."""

    def run(self, begin_with: Sequence[tuple[int, ...]], *, with_less: bool) -> None:
        """Find the best order that keeps the limits."""
        for order in begin_with:  # 1.
            self._begin_with(order)
        self._search()  # 2. to 4.
        if with_less:
            self._do_with_less()  # 5.
        self._fill()  # 6.
        self._give_back()  # 7.

    def _better(self, cost: _Cost) -> bool:
        return cost.seconds <= self.slowest and cost.score < self.best.score

    def _held(self, order: Sequence[int]) -> int:
        return max(live_bytes(self.program, order))

    def _allowed(self, order: Sequence[int], held: int) -> bool:
        return held <= self.allowed and max(bytes_in_flight(self.program, order)) <= self.flight

    def _allow(self, fraction: float) -> None:
        self.limit = self.limits.peak(self.baseline + self.leaving, fraction)
        self.allowed = max(self.limit, self.fallback.held)

    def _begin_with(self, order: tuple[int, ...]) -> None:
        """Keep `order` if it is better than the best one and within the limits."""
        order = lower_peak(self.program, order, self.limit)
        held, cost = self._held(order), _cost(self.program, self.slow, order)
        if self._better(cost) and self._allowed(order, held):
            self.best = _Found(order, cost.score, held, len(order))
            self.slowest = cost.seconds * (1 + SAME)

    def _search(self) -> None:
        """Try windows until a smaller one would not bring more."""
        window = len(self.graph.program.tasks)
        self.repairs = max(2, REPAIRS // len(self.program.tasks))
        while window:
            self.lowest, self.fits = float("inf"), False
            for heuristic in HEURISTICS:
                if self._try(heuristic, window):
                    return
            if self.fits or self.lowest >= self.best.score:
                return
            window //= 2

    def _try(self, heuristic: Heuristic, window: int) -> bool:
        """Make an order and keep it if it is better; returns whether nothing is left to improve."""
        slow, _ = self.graph.slower(NETWORK_SLACKS[0])
        order = make_order(self.graph, heuristic, window, self.allowed, self.flight)
        cost = _cost(self.graph.program, slow, order)
        lowest = cost.score < self.lowest
        self.lowest = min(self.lowest, cost.score)
        self.fits &= not lowest
        if not self._better(cost):
            return False
        order = order if self.coarse is None else self.coarse.expand(order)
        held = self._held(order)
        if held > self.limit and lowest and self.repairs:
            self.repairs -= 1
            order = lower_peak(self.program, order, self.limit)
            held, cost = self._held(order), _cost(self.program, self.slow, order)
            if not self._better(cost):
                return False
        if not self._allowed(order, held):
            return False
        self.fits |= lowest
        if held > self.best.held and cost.score > (1 - WORTH) * self.best.score:
            return False
        self.best = _Found(order, cost.score, held, window)
        return cost.hidden

    def _do_with_less(self) -> None:
        """The best order within a fraction of the increase, if there is one that is as fast."""
        found = self.best
        for fraction in MODEST:
            self._allow(fraction)
            if self.best.held <= self.allowed:
                break
            self.best = self.fallback
            self._search()
            if self.best.held <= self.allowed and self.best.score <= (1 + WORTH) * found.score:
                break
            self.best = found

    def _fill(self) -> None:
        """What hides a collective is put between its launch and its wait."""

        def judge(order: tuple[int, ...]) -> float:
            return _cost(self.program, self.slow, order).score

        def allowed(order: tuple[int, ...]) -> bool:
            return self._allowed(order, self._held(order))

        order = fill_gaps(self.program, self.best.order, judge, allowed)
        cost = _cost(self.program, self.slow, order)
        if self._better(cost):
            self.best = replace(self.best, order=order, score=cost.score, held=self._held(order))

    def _give_back(self) -> None:
        """Memory that the best order does not need to be as fast."""
        if self.best.held > self.baseline:
            order = lower_peak(self.program, self.best.order, self.baseline)
            cost = _cost(self.program, self.slow, order)
            held = self._held(order)  # less above the baseline may still be more in one place
            if held < self.best.held and cost.seconds <= self.slowest and cost.score <= self.best.score:
                self.best = replace(self.best, order=order)
