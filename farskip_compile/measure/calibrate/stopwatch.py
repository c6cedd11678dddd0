# SPDX-License-Identifier: Apache-2.0
"""Sizes and repetitions of measurements, and the seconds of calls on one device.

In:    a device, a budget in seconds; callables that work on tensors of the device.
Out:   sizes to measure (`Grids`), repetitions (`Budget`), and the seconds of one call, several times (`Times`).
Never: includes the first call, which may build or load a kernel.

Grids depend on the kind of device and on whether the budget is small, so they are equal on every rank. Time is that of
the clock on a CPU, of events in the stream on an accelerator. Short calls are timed several in a row, since neither
resolves a microsecond. On a CPU the operands change from call to call (`Pool`): those of a model are seldom in the
cache, except for results of the preceding operator.

An accelerator gets a head start of work before the first event, in which the host launches all that is timed. As in a
compiled program, whose launches are far ahead of the device, the time is then the device's, and not that of the host,
which takes longer to launch a small kernel than the device to run it.

The path for accelerators (`torch.accelerator`, `torch.Event`) was written by the documentation and has not been run.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from math import prod

import torch

from farskip_compile.base.json_files import JsonReader

GridAxes = tuple[tuple[int, ...], ...]
QUICK_SECONDS = 20.0
"""The budget below which fewer points are measured."""
LEAST, MOST = 3, 15
"""Repetitions of one point."""
MOST_SETS = 16
SHORT = 100e-6
"""Seconds below which calls are timed several in a row."""
AHEAD = 2e-3
"""Seconds of an accelerator's head start; longer than the host needs to launch the calls in a row."""
MOST_AHEAD = 200
"""Most products of a head start, however fast the device is."""
SIDE = 2048
"""Rows and columns of such a product."""


@dataclass(frozen=True)
class Grids:
    """Sizes to measure. Shapes as in `costs.Curves`; sizes of memory and messages in bytes."""

    matmul: GridAxes
    attention: GridAxes
    grouped: GridAxes
    heads: int
    """Attention heads: enough to fill the device."""
    groups: int
    memory: tuple[int, ...]
    strided: tuple[int, ...]
    fresh: tuple[int, ...]
    """Sizes of new buffers; empty for allocators that keep their memory."""
    messages: tuple[int, ...]


def grids(device: torch.device, *, quick: bool) -> Grids:
    """Return the sizes for a kind of device, from `grids.json`."""
    text = (resources.files("farskip_compile.measure.calibrate") / "grids.json").read_text(encoding="utf-8")
    kind, amount = "cpu" if device.type == "cpu" else "accelerator", "quick" if quick else "thorough"
    return JsonReader("grids.json").decode(Grids, json.loads(text)[kind][amount])


class Budget:
    """A time in seconds that is divided among the points that are still to be measured."""

    def __init__(self, seconds: float, points: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._end = clock() + seconds
        self._points = points

    def repetitions(self, once: float) -> int:
        """Return the repetitions of a point whose call takes `once` seconds, and count the point as done."""
        share = max(self._end - self._clock(), 0.0) / max(self._points, 1)
        self._points -= 1
        return max(LEAST, min(MOST, int(share / max(once, 1e-9))))


@dataclass(frozen=True)
class Times:
    """The seconds of repetitions of one measurement."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """The interquartile range as a fraction of the median."""
        ordered = sorted(self.seconds)
        low, high = ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4 - (len(ordered) % 4 == 0)]
        return (high - low) / self.median if self.median else 0.0


class Stopwatch:
    """A timer of calls on `device`; `clock` is used on a CPU only."""

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
        waits: bool = False,
    ) -> Times:
        """Time one call as often as the budget allows.

        Args:
            call: the call.
            budget: of the measurements.
            before: runs before each repetition, untimed: makes the operands as the preceding operator would.
            least: seconds that one repetition should take; a shorter call is repeated within it.
            waits: the call waits for the device, so that the host can't be ahead.
        """
        call()
        once = self.span(call, 1, before, waits=waits)
        count = max(1, min(1000, round(least / max(once, 1e-7))))
        ahead = 0.0 if waits or self.device.type == "cpu" else AHEAD
        repetitions = budget.repetitions(once * count * (2 if before else 1) + ahead)
        return Times(tuple(self.span(call, count, before, waits=waits) for _ in range(repetitions)))

    def span(
        self,
        call: Callable[[], object],
        count: int = 1,
        before: Callable[[], object] | None = None,
        *,
        waits: bool = False,
        lead: Callable[[], object] | None = None,
    ) -> float:
        """Return the seconds of one of `count` calls in a row.

        Args:
            call: the call.
            count: calls in a row.
            before: as for `time`.
            waits: as for `time`.
            lead: runs right before the first call, untimed; on an accelerator at the end of the head start.
        """
        if self.device.type == "cpu":
            if before is not None:
                before()
            if lead is not None:
                lead()
            start = self.clock()
            for _ in range(count):
                call()
            return max(self.clock() - start, 1e-9) / count
        first, last = (torch.Event(self.device, enable_timing=True) for _ in range(2))
        products = 0 if waits else self._products
        torch.accelerator.synchronize(self.device)
        for _ in range(products):
            torch.mm(self._operand, self._operand)
        if before is not None:
            before()  # what it writes is to be in the device's cache
        if lead is not None:
            lead()
        first.record()
        for _ in range(count):
            call()
        last.record()
        last.synchronize()
        return max(float(first.elapsed_time(last)) / 1e3, 1e-9) / count

    @cached_property
    def _operand(self) -> torch.Tensor:
        return torch.ones(SIDE, SIDE, device=self.device)

    @cached_property
    def _products(self) -> int:
        """The number of products that give the host its head start."""

        def product() -> object:
            return torch.mm(self._operand, self._operand)

        one = self.span(product, 10, lead=product, waits=True)  # the first one loads the library
        return max(1, min(MOST_AHEAD, round(AHEAD / one)))


class Pool:
    """Operands from one large block, each from another place, so that caches do not hold them already.

    The block has `size` bytes; more if one call needs as much.
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
        """Return disjoint tensors of numbers near zero, which may share memory with those of much earlier calls."""
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
    """Return a source of `sets` groups of operands (1 to 16) in turn."""
    made = [make() for _ in range(max(1, min(sets, MOST_SETS)))]
    endless = itertools.cycle(made)
    return lambda: next(endless)
