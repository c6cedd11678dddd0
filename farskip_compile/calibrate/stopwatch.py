"""What is measured and how often, and the seconds of calls on one device.

In:    a device, a budget in seconds; callables that work on tensors of the device.
Out:   sizes to measure (`Grids`), repetitions (`Budget`), and the seconds of one call, several times (`Times`).
Never: includes the first call, which may build or load a kernel.

Grids depend on the kind of device and on whether the budget is small, so they are equal on every rank. Time is that of
the clock on a CPU, of events in the stream on an accelerator. Short calls are timed several in a row, since neither
resolves a microsecond. On a CPU the operands change from call to call (`Pool`): a model's are seldom in the cache,
apart from what the preceding operator made.

The path for accelerators (`torch.accelerator`, `torch.Event`) was written by the documentation and has not been run.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from math import prod

import torch

from farskip_compile.json_files import Reader

Axes = tuple[tuple[int, ...], ...]
QUICK_SECONDS = 20.0
"""A budget below this measures fewer points."""
LEAST, MOST = 3, 15
"""Repetitions of one point."""
MOST_SETS = 16
SHORT = 100e-6
"""Calls that take less are timed several in a row."""


@dataclass(frozen=True)
class Grids:
    """Sizes to measure. Shapes as in `costs.Curves`; sizes of memory and messages in bytes."""

    matmul: Axes
    attention: Axes
    grouped: Axes
    heads: int
    """Attention heads: enough to fill the device."""
    groups: int
    memory: tuple[int, ...]
    strided: tuple[int, ...]
    fresh: tuple[int, ...]
    """Sizes of new buffers; empty where the allocator keeps what it has."""
    messages: tuple[int, ...]


def grids(device: torch.device, *, quick: bool) -> Grids:
    """The sizes for a kind of device, from `grids.json`."""
    text = (resources.files("farskip_compile.calibrate") / "grids.json").read_text(encoding="utf-8")
    kind, amount = "cpu" if device.type == "cpu" else "accelerator", "quick" if quick else "thorough"
    return Reader("grids.json").decode(Grids, json.loads(text)[kind][amount])


class Budget:
    """Divides a time in seconds among the points that are still to be measured."""

    def __init__(self, seconds: float, points: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._end = clock() + seconds
        self._points = points

    def repetitions(self, once: float) -> int:
        """How often a point whose call takes `once` seconds is measured; counts the point as done."""
        share = max(self._end - self._clock(), 0.0) / max(self._points, 1)
        self._points -= 1
        return max(LEAST, min(MOST, int(share / max(once, 1e-9))))


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
        """Interquartile range as a fraction of the median."""
        ordered = sorted(self.seconds)
        low, high = ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4 - (len(ordered) % 4 == 0)]
        return (high - low) / self.median if self.median else 0.0


class Stopwatch:
    """Times calls on `device`; `clock` is used on a CPU only."""

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
            before: runs before each repetition, untimed: makes the operands as the preceding operator would.
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
    """Operands from one large block, each from another place in it, so that caches do not hold them already.

    The block has `size` bytes; more where one call needs as much.
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
        """Tensors of numbers near zero, disjoint; they may share memory with those of much earlier calls."""
        counts = [-(-prod(shape) // 64) * 64 for shape in shapes]
        if sum(counts) > self._block.numel():
            self._block = self._make(sum(counts) * self.dtype.itemsize)
        if self._at + sum(counts) > self._block.numel():
            self._at = 0
        found = []
        for shape, count in zip(shapes, counts, strict=True):
            found.append(self._block[self._at : self._at + prod(shape)].view(shape))
            self._at += count
        return found


def rotating(make: Callable[[], Sequence[torch.Tensor]], sets: int) -> Callable[[], Sequence[torch.Tensor]]:
    """Gives one of `sets` groups of operands (1 to 16) after the other."""
    made = [make() for _ in range(max(1, min(sets, MOST_SETS)))]
    endless = itertools.cycle(made)
    return lambda: next(endless)
