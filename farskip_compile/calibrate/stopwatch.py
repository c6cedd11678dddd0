"""Times calls on one device: by the clock on a CPU, by events in the stream on an accelerator.

In:    a callable that works on tensors of the device.
Out:   seconds of one call, several times.
Never: includes the first call, which may build or load a kernel.

Short calls are timed several in a row, since neither a clock nor events resolve a microsecond. On a CPU the operands
change from call to call (`Pool`): a model's are seldom in the cache, apart from what the operator before has made.

The path for accelerators (`torch.accelerator`, `torch.Event`) was written by the documentation and has not been run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch

from farskip_compile.calibrate.settings import Budget

MOST_SETS = 16
SHORT = 100e-6
"""Calls that take less are timed several in a row."""


@dataclass(frozen=True)
class Times:
    """Repetitions of one measurement, in seconds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Half took longer."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Interquartile range as a part of the median."""
        ordered = sorted(self.seconds)
        low, high = ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4 - (len(ordered) % 4 == 0)]
        return (high - low) / self.median if self.median else 0.0


class Stopwatch:
    """Times calls on `device`.

    Args:
        device: where they run.
        clock: seconds since some moment; used on a CPU only.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self.device = device
        self.clock = clock

    def time(
        self,
        call: Callable[[], object],
        budget: Budget,
        *,
        before: Callable[[], object] | None = None,
        least: float = SHORT,
    ) -> Times:
        """Seconds of one call, as often as the budget allows.

        Args:
            call: what is timed.
            budget: how often.
            before: runs in front of each repetition, untimed: makes the operands as the operator before would.
            least: seconds that one repetition should take; a shorter call is repeated within it.
        """
        call()
        once = self._span(call, 1, before)
        count = max(1, min(1000, round(least / max(once, 1e-7))))
        repetitions = budget.repetitions(once * count * (2 if before else 1))
        return Times(tuple(self._span(call, count, before) for _ in range(repetitions)))

    def _span(self, call: Callable[[], object], count: int, before: Callable[[], object] | None) -> float:
        """Seconds of one of `count` calls in a row."""
        if before is not None:
            before()
        if self.device.type == "cpu":
            start = self.clock()
            for _ in range(count):
                call()
            return max(self.clock() - start, 1e-9) / count
        first, last = (torch.Event(self.device, enable_timing=True) for _ in range(2))
        torch.accelerator.synchronize(self.device)
        first.record()
        for _ in range(count):
            call()
        last.record()
        last.synchronize()
        return max(float(first.elapsed_time(last)) / 1e3, 1e-9) / count


class Pool:
    """Operands from one large block, each from another place of it, so that caches do not hold them already.

    Args:
        device: where the block is.
        dtype: of its numbers.
        size: bytes of it; more where one call needs as much.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, size: int) -> None:
        self.device, self.dtype, self._at = device, dtype, 0
        self._block = self._make(size)

    def _make(self, size: int) -> torch.Tensor:
        generator = torch.Generator(device=self.device).manual_seed(0)
        wide = torch.float32 if self.dtype != torch.float64 else torch.float64
        numbers = torch.empty(size // self.dtype.itemsize, dtype=wide, device=self.device)
        return numbers.uniform_(-0.05, 0.05, generator=generator).to(self.dtype)

    def take(self, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
        """Tensors of numbers near zero, apart from each other; they may share memory with others taken long before."""
        counts = [-(-prod(shape) // 64) * 64 for shape in shapes]
        if sum(counts) > self._block.numel():
            self._block = self._make(sum(counts) * self.dtype.itemsize)
        if self._at + sum(counts) > self._block.numel():
            self._at = 0
        taken = []
        for shape, count in zip(shapes, counts, strict=True):
            taken.append(self._block[self._at : self._at + prod(shape)].view(shape))
            self._at += count
        return taken


def rotating(make: Callable[[], Sequence[torch.Tensor]], sets: int) -> Callable[[], Sequence[torch.Tensor]]:
    """Gives one of `sets` groups of operands (1 to 16) after the other."""
    made = [make() for _ in range(max(1, min(sets, MOST_SETS)))]
    turn = -1

    def take() -> Sequence[torch.Tensor]:
        nonlocal turn
        turn = (turn + 1) % len(made)
        return made[turn]

    return take


def time_just_written(
    watch: Stopwatch, take: Callable[[], Sequence[torch.Tensor]], call: Callable[..., object], budget: Budget
) -> Times:
    """Times `call` on operands that `take` gives, the first of which was written just before."""
    current = list(take())

    def before() -> None:
        current[:] = take()
        current[0].add_(0)

    with torch.no_grad():
        return watch.time(lambda: call(*current), budget, before=before)
