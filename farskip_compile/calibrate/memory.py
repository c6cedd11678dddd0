"""Measures what is bound by memory, and small fixed costs: kernels by bytes, transposes, new pages, launches, reads.

In:    a stopwatch, a type, the grids, a budget.
Out:   rows and figures.
Never: communicates.

Streaming is one product of two tensors into a third, which every backend runs at the speed of its memory. Arithmetic
and transposes depend on the compiler, so that Inductor's own kernels are timed: a softmax, whose row stays in the
cache, and a transposed copy. Compiling two of them takes some seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from farskip_compile._compat import mark_dynamic
from farskip_compile.calibrate.products import CACHE
from farskip_compile.calibrate.results import Row
from farskip_compile.calibrate.settings import Budget, Grids
from farskip_compile.calibrate.stopwatch import Pool, Stopwatch, Times, rotating, time_just_written
from farskip_compile.costs import Curve

SOFTMAX_OPS = 13
"""Elementwise operations of a softmax as `costs.loops` counts them: 5 for exp, 4 others, and 4 passes over the row."""
SOFTMAX_ROWS, SOFTMAX_COLUMNS = (64, 256), 1024
"""Small enough for the second level of a CPU's cache."""
TRANSPOSED = (256, 128)
"""Rows and columns that are exchanged; as many of them as make the bytes."""
PAGES = "new pages"
MOST_COMMON = 0.1
IN_A_ROW = 2e-3
"""Seconds of a loop in a row, so that only its arithmetic is left."""
FASTEST = 1e13
"""Bytes/s that stand for new pages which cost nothing."""


@dataclass
class MemoryFigures:
    """What was found; None: not measured here."""

    launch_seconds: float = 0.0
    sync_seconds: float = 0.0
    memory: Curve | None = None
    strided: Curve | None = None
    fresh: Curve | None = None
    element_rate: float | None = None
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Memory:
    """Measures on one device with one type.

    Args:
        watch: times the calls.
        dtype: of the operands.
        grids: which sizes.
    """

    def __init__(self, watch: Stopwatch, dtype: torch.dtype, grids: Grids) -> None:
        self.watch, self.dtype, self.grids = watch, dtype, grids
        self.found = MemoryFigures()
        self._pool, self._results = (Pool(watch.device, dtype, CACHE) for _ in range(2))

    def overheads(self, seconds: float) -> None:
        """Launches of a kernel that does nothing to speak of; reading a number that is there."""
        budget = Budget(seconds, 2, self.watch.clock)
        few = torch.ones(4, dtype=self.dtype, device=self.watch.device)
        times = self.watch.time(lambda: torch.add(few, few, out=few), budget)
        self._row("launch", (few.nbytes,), times)
        self.found.launch_seconds = times.median
        one = few[:1]
        times = self.watch.time(one.item, budget)
        self._row("read a number", (one.nbytes,), times)
        self.found.sync_seconds = times.median

    def streaming(self, seconds: float) -> None:
        """Kernels that read two tensors and write one, by all the bytes they move."""
        budget = Budget(seconds, len(self.grids.memory), self.watch.clock)
        rates = []
        for size in self.grids.memory:
            count = size // (3 * self.dtype.itemsize)
            take = self._operands([(count,)] * 2, size, [(count,)])
            times = self._run(take, lambda a, b, c: torch.mul(a, b, out=c), budget)
            rates.append(self._row("memory", (size,), times, size))
        self.found.memory = Curve(axes=(self.grids.memory,), values=tuple(rates))

    def fresh(self, seconds: float) -> None:
        """How much longer it takes to fill a new buffer than an old one."""
        sizes = self.grids.fresh
        if not sizes:
            return
        budget = Budget(seconds, 2 * len(sizes), self.watch.clock)
        rates = []
        for size in sizes:
            count = size // self.dtype.itemsize
            old = torch.zeros(count, dtype=self.dtype, device=self.watch.device)
            known = self.watch.time(partial(old.fill_, 0), budget)
            times = self.watch.time(partial(self._new, count), budget)
            extra = max(times.median - known.median, size / FASTEST)
            self._row(PAGES, (size,), Times((extra,)), size)
            rates.append(size / extra)
        self.found.fresh = Curve(axes=(sizes,), values=tuple(rates))

    def _new(self, count: int) -> None:
        torch.empty(count, dtype=self.dtype, device=self.watch.device).fill_(0)

    def compiled(self, seconds: float) -> None:
        """Inductor's kernels: arithmetic, and transposes by bytes. Not measured where Inductor can't compile."""
        budget = Budget(seconds, 2 + len(self.grids.strided), self.watch.clock)
        try:
            if self.watch.device.type == "cpu":  # a GPU's arithmetic hides behind its memory, and can't be seen so
                self._softmax(budget)
            self._transposes(budget)
        except Exception as error:  # no compiler, no Triton: whatever it is, the figures of the base stay
            self.found.notes.append(f"Inductor's kernels are not measured: {str(error).splitlines()[0][:100]}")

    def _softmax(self, budget: Budget) -> None:
        """Of two heights, which tell what a call costs beside its loops."""
        run = torch.compile(lambda x: torch.softmax(x, -1))
        seconds = []
        for rows in SOFTMAX_ROWS:
            moved = 2 * rows * SOFTMAX_COLUMNS * self.dtype.itemsize
            shape = (rows, SOFTMAX_COLUMNS)
            call = partial(run, *_of_any_length(self._pool.take(shape)))
            with torch.no_grad():
                times = self.watch.time(call, budget, least=IN_A_ROW)
            self._row("fused softmax", shape, times, moved)
            seconds.append(times.median)
        self.found.element_rate = softmax_rate(*seconds)

    def _transposes(self, budget: Budget) -> None:
        run = torch.compile(lambda x: x.transpose(1, 2).contiguous())
        rates: list[float] = []
        rows, columns = TRANSPOSED
        for size in self.grids.strided:
            take = self._operands([(size // (2 * self.dtype.itemsize * rows * columns), rows, columns)], size)
            times = self._run(partial(_of_any_length_later, take), run, budget)
            rates.append(self._row("fused transpose", (size,), times, size))
        self.found.strided = Curve(axes=(self.grids.strided,), values=tuple(rates))

    def _operands(
        self, shapes: Sequence[tuple[int, ...]], moved: int, results: Sequence[tuple[int, ...]] = ()
    ) -> Callable[[], Sequence[torch.Tensor]]:
        """Operands of a kernel that moves so many bytes, others each time, and where it writes."""
        return rotating(lambda: [*self._pool.take(*shapes), *self._results.take(*results)], CACHE // moved)

    def _run(self, take: Callable[[], Sequence[torch.Tensor]], call: Callable[..., object], budget: Budget) -> Times:
        return time_just_written(self.watch, take, call, budget)

    def _row(self, section: str, size: tuple[int, ...], times: Times, moved: int | None = None) -> float:
        """Keep a row; the rate, in bytes/s."""
        rate = moved / times.median if moved else 0.0
        unit = "B/s" if moved else ""
        row = Row(section, size, times.median, times.spread, len(times.seconds), rate if moved else None, unit)
        self.found.rows.append(row)
        return rate


def softmax_rate(low: float, high: float) -> float:
    """Elementwise operations/s, from the seconds of the softmax of each height.

    What the two have in common is no arithmetic; it is a small part of the time, and more than that is noise.
    """
    ratio = SOFTMAX_ROWS[1] / SOFTMAX_ROWS[0]
    common = min(max((ratio * low - high) / (ratio - 1), 0.0), MOST_COMMON * high)
    return SOFTMAX_OPS * SOFTMAX_ROWS[1] * SOFTMAX_COLUMNS / (high - common)


def _of_any_length(operands: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """Let one kernel serve all lengths of the first dimension; the others are constants, as they are in a model."""
    for operand in operands:
        mark_dynamic(operand, 0)
    return operands


def _of_any_length_later(take: Callable[[], Sequence[torch.Tensor]]) -> Sequence[torch.Tensor]:
    return _of_any_length(take())
