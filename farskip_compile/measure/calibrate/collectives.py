# SPDX-License-Identifier: Apache-2.0
"""Measurements of the collectives of one link: seconds by kind and size, and the slowdown of compute meanwhile.

In:    ranks that share one link, message sizes, a budget.
Out:   rows, samples for `costs.fit_link`, an uneven all-to-all, and the interference.
Never: lets ranks disagree: rank 0 decides how often and up to which size is measured.

Seconds are those of the slowest rank, from the start of the last one: by the clock on CPUs, by events in the stream on
accelerators, where all calls are launched before the device comes to the first. On CPUs every other rank starts late,
as ranks that have just computed do not start at the same moment either. A late rank lets the others send only after its
own data, so gloo's all-to-all moves both ways at once only if all start together, and takes twice as long otherwise.
Small messages are timed several in a row. Sizes grow until one call takes too long for the budget. Kinds for which the
user names the largest message are measured up to that size in any case, and get most of the budget.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist

from farskip_compile._compat.collectives import all_gather_in_place, reduce_scatter_in_place
from farskip_compile.costs.collectives import Sample
from farskip_compile.costs.profile import COLLECTIVE_KINDS, CollectiveKind
from farskip_compile.measure.calibrate.findings import LinkFindings, MeasuredPoint, Uneven
from farskip_compile.measure.calibrate.ranks import MeasuredGroup
from farskip_compile.measure.calibrate.stopwatch import Stopwatch, Times

LEAST_SIZES = 2
SMALL = 64 * 2**10
"""Bytes below which calls are timed several in a row."""
IN_A_ROW = 4
REPETITIONS = 7
LATE = 2e-3
"""Seconds by which every other rank starts late; more than a message takes to the other side."""
WORTHWHILE = 60e-3
"""Seconds that a collective should be in flight to show its effect on compute: on CPUs, starting takes a few."""
ALONE = 40
"""Steps of about a millisecond, over which compute is timed without a collective."""
NAMED = 4
"""The weight in the budget of a kind for which the user names the largest message."""
FULLER = 1.5
"""Bytes that one rank receives in the uneven all-to-all, over the mean."""


class Collectives:
    """The measurements over `ranks`, at least two, by one clock, since the end of a collective is waited for."""

    def __init__(self, ranks: MeasuredGroup, clock: Callable[[], float] = time.perf_counter) -> None:
        self.ranks, self.clock = ranks, clock
        self.watch = Stopwatch(ranks.device, clock)
        self.found = LinkFindings()

    def measure(
        self, messages: tuple[int, ...], seconds: float, largest: Mapping[CollectiveKind, int] | None = None
    ) -> LinkFindings:
        """Measure all kinds by size, an uneven all-to-all and the interference, in about `seconds`.

        Args:
            messages: sizes in bytes.
            seconds: the budget.
            largest: bytes of the largest message of some kinds.
        """
        largest = largest or {}
        weights = {kind: NAMED if kind in largest else 1 for kind in COLLECTIVE_KINDS}
        for kind, weight in weights.items():
            own = messages
            if kind in largest:
                own = (*(size for size in messages if size < largest[kind] / 2), largest[kind])
                own = own if len(own) > 1 else (max(largest[kind] // 16, 1), *own)
            self._kind(kind, own, 0.75 * seconds * weight / sum(weights.values()), whole=kind in largest)
        self.found.uneven = self._uneven(0.05 * seconds)
        self.found.interference = self._interference(messages, 0.2 * seconds)
        return self.found

    def _kind(self, kind: CollectiveKind, messages: tuple[int, ...], seconds: float, *, whole: bool) -> None:
        left, measured = seconds, []
        for place, size in enumerate(messages):
            count = IN_A_ROW if size < SMALL else 1
            times, once = self._repeated(self._call(kind, size), left / (len(messages) - place), count)
            measured.append((size, times.median))
            self.found.rows.append(MeasuredPoint.moving(f"{kind}, {self.ranks.size} ranks", (size,), times, size))
            left -= sum(times.seconds) * count + 2 * once
            grown = messages[place + 1] / size if place + 1 < len(messages) else 0.0
            if not whole and place + 1 >= LEAST_SIZES and grown * times.median * 3 > max(left, 0.0):
                break
        self.found.samples += [Sample(kind, size, self.ranks.size, value) for size, value in monotone(measured)]

    def _repeated(self, call: Callable[[], object], seconds: float, count: int = 1) -> tuple[Times, float]:
        """Time `count` calls in a row as often as the budget allows; return also the seconds of the first one."""
        once = self._time(call, 1, 2)[-1]
        repetitions = max(3, min(REPETITIONS, int(seconds / max(once * count, 1e-9))))
        return Times(tuple(self._time(call, count, repetitions))), once

    def _time(self, call: Callable[[], object], count: int, repetitions: int) -> list[float]:
        """Return the seconds of one call on the slowest rank; the first of several repetitions warms up."""
        on_cpu = self.ranks.device.type == "cpu"
        late = LATE if count == 1 and on_cpu else 0.0
        seconds = torch.zeros(repetitions, dtype=torch.float64)
        for repetition in range(repetitions):
            self.ranks.barrier()
            if not on_cpu:
                # one more before, which ends on all ranks at once: they are not equally fast until then
                seconds[repetition] = self.watch.span(call, count, lead=call)
                continue
            start = self.clock()
            if late and self.ranks.rank % 2:
                time.sleep(late)
            for _ in range(count):
                call()
            seconds[repetition] = max(self.clock() - start - late, 1e-9) / count
        return list(map(float, self.ranks.slowest(seconds.float())))

    def _settle(self) -> None:
        if self.ranks.device.type != "cpu":
            torch.accelerator.synchronize(self.ranks.device)

    def _buffers(self, size: int) -> list[torch.Tensor]:
        """Return two buffers of `size` bytes, or of one number for each rank."""
        count = max(size // 4 // self.ranks.size, 1) * self.ranks.size
        return [torch.zeros(count, device=self.ranks.device) for _ in range(2)]

    def _call(self, kind: CollectiveKind, size: int) -> Callable[[], object]:
        """Return a call that moves `size` bytes, as `costs.CollectiveCost` counts them."""
        ranks, group = self.ranks.size, self.ranks.group
        whole, other = self._buffers(size)
        part = torch.zeros(len(whole) // ranks, device=self.ranks.device)
        assert group is not None
        calls: dict[str, Callable[[], object]] = {
            "all_to_all": lambda: dist.all_to_all_single(other, whole, group=group),
            "all_reduce": lambda: dist.all_reduce(whole, group=group),
            "all_gather": lambda: all_gather_in_place(whole, part, group=group),
            "reduce_scatter": lambda: reduce_scatter_in_place(part, whole, group=group),
            "broadcast": lambda: dist.broadcast(whole, dist.get_global_rank(group, 0), group=group),
        }
        return calls[kind]

    def _uneven(self, seconds: float) -> Uneven:
        """Time an uneven all-to-all, as large as the largest measured one on the rank that receives most."""
        largest = next(sample for sample in reversed(self.found.samples) if sample.kind == "all_to_all")
        ranks = self.ranks.size
        fuller = max(largest.bytes // 4 // ranks, 1)  # numbers that each rank gives to the first one
        rest = max(round(fuller * (ranks / FULLER - 1) / (ranks - 1)), 1)
        given = [fuller, *[rest] * (ranks - 1)]
        got = [given[self.ranks.rank]] * ranks
        sent = torch.zeros(sum(given), device=self.ranks.device)
        received = torch.zeros(sum(got), device=self.ranks.device)
        group = self.ranks.group

        def call() -> object:
            return dist.all_to_all_single(received, sent, got, given, group=group)

        return Uneven(4 * fuller * ranks, 4 * sum(given), ranks, self._repeated(call, seconds)[0].median)

    def _interference(self, messages: tuple[int, ...], seconds: float) -> float | None:
        """Return the slowdown of compute by an all-to-all; None if none is long enough to see."""
        known = [sample for sample in self.found.samples if sample.kind == "all_to_all"]
        rate = known[-1].bytes / known[-1].seconds
        size = int(max(min(WORTHWHILE * rate, 4 * messages[-1]), known[-1].bytes))
        work = _Work(self.ranks.device)
        work.repeat = self.ranks.agreed(work.tuned(self.clock, self._settle))
        repetitions = max(3, min(REPETITIONS, int(seconds / (3 * max(size / rate, 1e-3)))))
        slowed: list[float] = []
        for _ in range(repetitions):
            alone = self._pace(work, size, in_flight=False)
            busy = self._pace(work, size, in_flight=True)
            if alone is not None and busy is not None:
                slowed.append(busy / alone - 1)
        enough = self.ranks.agreed(len(slowed) >= 2)
        return max(0.0, self.ranks.agreed(statistics.median(slowed) if slowed else 0.0)) if enough else None

    def _pace(self, work: _Work, size: int, *, in_flight: bool) -> float | None:
        """Return the seconds of one step of work, while an all-to-all is in flight or while nothing is.

        The first step does not count: starting a collective takes a CPU a moment, which is a part of its latency.
        """
        sent, received = self._buffers(size)
        self.ranks.barrier()
        self._settle()
        handle = None
        if in_flight:
            if self.ranks.device.type == "cpu" and self.ranks.rank % 2:
                time.sleep(LATE)
            handle = dist.all_to_all_single(received, sent, group=self.ranks.group, async_op=True)
        work()
        self._settle_work()
        start, steps, inside = self.clock(), 0, 0.0
        while steps < 500:
            work()
            self._settle_work()
            now = self.clock() - start
            if handle is not None and handle.is_completed():
                break  # the step in which it ended overlaps it only partly
            steps, inside = steps + 1, now
            if handle is None and steps >= ALONE:
                break
        if handle is not None:
            handle.wait()
        return inside / steps if steps else None

    def _settle_work(self) -> None:
        """Wait for compute alone: the collective is on a stream of its own."""
        if self.ranks.device.type != "cpu":
            torch.accelerator.current_stream(self.ranks.device).synchronize()


def monotone(measured: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return (bytes, seconds) that grow: no message is slower than a larger one, since noise only adds time.

    If all take alike, the largest takes a hundredth more, so that there is a rate.
    """
    found: list[tuple[int, float]] = []
    least = float("inf")
    for size, seconds in reversed(measured):
        least = min(least, seconds)
        found.insert(0, (size, least))
    size, seconds = found[-1]
    return [*found[:-1], (size, max(seconds, 1.01 * found[0][1]))]


class _Work:
    """A matrix product and a pass over memory, as compute that a collective may slow."""

    def __init__(self, device: torch.device) -> None:
        side = 192 if device.type == "cpu" else 4096
        self.left = torch.full((side, side), 0.01, device=device)
        self.right, self.out = self.left.clone(), self.left.clone()
        self.stream = torch.zeros(2**17 if device.type == "cpu" else 2**24, device=device)
        self.repeat = 1

    def __call__(self) -> None:
        for _ in range(self.repeat):
            torch.mm(self.left, self.right, out=self.out)
            self.stream.add_(1.0)

    def tuned(self, clock: Callable[[], float], settle: Callable[[], None]) -> int:
        """Return the repetitions that make one step take about a millisecond."""
        self()
        settle()
        start = clock()
        self()
        settle()
        return max(1, min(100, round(1e-3 / max(clock() - start, 1e-6))))
