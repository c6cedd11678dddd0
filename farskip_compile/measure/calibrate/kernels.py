# SPDX-License-Identifier: Apache-2.0
"""Measurements of kernels: products by shape, memory-bound kernels by bytes, and small fixed costs.

In:    a stopwatch, a type, the grids, a budget.
Out:   rows; a `Curve` of FLOP/s for each kind of product; `MemoryFigures`.
Never: communicates.

Products: dense, grouped, and attention forward and backward. The launch overhead is subtracted from the time of a call,
since the cost model adds it to every kernel. Left operands are written shortly before, as the preceding operator would
do; weights and results are wherever they happen to be.

Memory: streaming is one product of two tensors into a third, which every backend runs at the speed of its memory.
Arithmetic and transposes depend on the compiler, so Inductor's own kernels are timed: a softmax, whose row stays in the
cache, and a transposed copy. Compiling these two takes some seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from math import prod

import torch
import torch.nn.functional as F

from farskip_compile._compat import mark_dynamic
from farskip_compile.costs import Curve
from farskip_compile.costs.operators import tf32_allowed
from farskip_compile.measure.calibrate.findings import PAGES, MeasuredPoint, MemoryFigures
from farskip_compile.measure.calibrate.stopwatch import Budget, GridAxes, Grids, Pool, Stopwatch, Times, rotating

LABELS = {"attention_backward": "attention bwd", "grouped_matmul": "grouped matmul"}
CACHE = 64 * 2**20
"""Bytes of operands after which the first ones are no longer in a cache."""
SOFTMAX_OPS = 13
"""Elementwise operations of a softmax in `costs.loops`: 5 for exp, 4 others, and 4 passes over the row."""
SOFTMAX_ROWS, SOFTMAX_COLUMNS = (64, 256), 1024
"""Small enough for the second-level cache of a CPU."""
TRANSPOSED = (256, 128)
"""Rows and columns of a transposed matrix; as many matrices as make up the bytes."""
MOST_COMMON = 0.1
IN_A_ROW = 2e-3
"""Seconds of calls in a row, so that only the arithmetic of their loop counts."""
FASTEST = 1e13
"""Bytes/s of new pages that cost nothing."""

BenchShape = tuple[int, ...]
Take = Callable[[], Sequence[torch.Tensor]]


class Bench:
    """Measurements on one device with operands of one type; rows and notes collect in it."""

    def __init__(self, watch: Stopwatch, dtype: torch.dtype, grids: Grids) -> None:
        self.watch, self.dtype, self.grids = watch, dtype, grids
        self.rows: list[MeasuredPoint] = []
        self.notes: list[str] = []
        # results of results shrink to denormal numbers, which are a hundred times as slow: no operand is a result
        self._pool, self._results = (Pool(watch.device, dtype, CACHE) for _ in range(2))

    def operands(self, shapes: Sequence[BenchShape], moved: int, results: Sequence[BenchShape] = ()) -> Take:
        """Return a source of operands and results for a kernel that touches `moved` bytes, others in each call."""
        return rotating(lambda: [*self._pool.take(*shapes), *self._results.take(*results)], CACHE // moved)

    def just_written(self, take: Take, call: Callable[..., object], budget: Budget) -> Times:
        """Time `call` on operands of `take`, the first of which was written just before."""
        current = list(take())

        def before() -> None:
            current[:] = take()
            current[0].add_(0)

        with torch.no_grad():
            return self.watch.time(lambda: call(*current), budget, before=before)


class ProductBench(Bench):
    """Measurements of products; `launch_seconds`, the overhead of a call, is subtracted from its time."""

    def __init__(self, watch: Stopwatch, dtype: torch.dtype, grids: Grids, launch_seconds: float) -> None:
        super().__init__(watch, dtype, grids)
        self.launch, self.name = launch_seconds, str(dtype).removeprefix("torch.")
        if dtype == torch.float32 and watch.device.type != "cpu" and tf32_allowed():
            self.name = "tfloat32"  # which is how this process computes such products

    def measure(self, seconds: float) -> dict[str, Curve]:
        """Return a curve for each kind of product (a field of `costs.Curves`) that runs here."""
        grids = self.grids
        backward = tuple(axis[-2:] for axis in grids.attention[:2]) + grids.attention[2:]
        plans: tuple[tuple[str, GridAxes, Callable[..., tuple[Times, float]]], ...] = (
            ("matmul", grids.matmul, self._matmul),
            ("grouped_matmul", grids.grouped, self._grouped),
            ("attention", grids.attention, self._attention),
            ("attention_backward", backward, self._attention_backward),
        )
        points = {kind: prod(map(len, axes)) for kind, axes, _ in plans}
        found = {}
        for kind, axes, measure in plans:
            budget = Budget(seconds * points[kind] / sum(points.values()), points[kind], self.watch.clock)
            try:
                found[kind] = self._curve(kind, axes, measure, budget)
            except (RuntimeError, NotImplementedError) as error:
                self.notes.append(f"{kind} {self.name} does not run here: {str(error).splitlines()[0][:100]}")
        return found

    def _curve(self, kind: str, axes: GridAxes, measure: Callable[..., tuple[Times, float]], budget: Budget) -> Curve:
        rows = []
        for shape in product(*axes):
            times, flops = measure(*shape, budget)
            rate = flops / max(times.median - self.launch, 0.1 * times.median)
            rows.append(MeasuredPoint.of(f"{LABELS.get(kind, kind)} {self.name}", shape, times, rate, "FLOP/s"))
        self.rows += rows
        return Curve(axes=axes, values=tuple(row.rate or 0.0 for row in rows))

    def _matmul(self, rows: int, inner: int, columns: int, budget: Budget) -> tuple[Times, float]:
        """Time a product with a weight [columns, inner], as in a linear layer."""
        numbers = rows * inner + columns * inner + rows * columns
        take = self.operands([(rows, inner), (columns, inner)], numbers * self.dtype.itemsize, [(rows, columns)])
        times = self.just_written(take, lambda x, w, y: torch.mm(x, w.t(), out=y), budget)
        return times, 2.0 * rows * inner * columns

    def _grouped(self, rows: int, inner: int, columns: int, budget: Budget) -> tuple[Times, float]:
        groups = self.grids.groups
        ends = torch.arange(1, groups + 1, dtype=torch.int32, device=self.watch.device) * rows
        moved = groups * (rows + columns) * inner * self.dtype.itemsize
        take = self.operands([(groups * rows, inner), (groups, columns, inner)], moved)
        times = self.just_written(take, lambda x, w: F.grouped_mm(x, w.transpose(1, 2), offs=ends), budget)
        return times, 2.0 * groups * rows * inner * columns

    def _attention(self, queries: int, keys: int, width: int, budget: Budget) -> tuple[Times, float]:
        """Time attention without a mask: `OpCost.executed` counts the savings of a causal one."""
        take = rotating(lambda: self._heads(queries, keys, width), 4)
        times = self.just_written(take, F.scaled_dot_product_attention, budget)
        return times, 4.0 * self.grids.heads * queries * keys * width

    def _attention_backward(self, queries: int, keys: int, width: int, budget: Budget) -> tuple[Times, float]:
        inputs = [part.clone().requires_grad_() for part in self._heads(queries, keys, width)]
        with torch.enable_grad():
            out = F.scaled_dot_product_attention(inputs[0], inputs[1], inputs[2])
        gradient = torch.ones_like(out)
        times = self.watch.time(lambda: torch.autograd.grad(out, inputs, gradient, retain_graph=True), budget)
        return times, 10.0 * self.grids.heads * queries * keys * width

    def _heads(self, queries: int, keys: int, width: int) -> list[torch.Tensor]:
        heads = self.grids.heads
        return self._pool.take((1, heads, queries, width), (1, heads, keys, width), (1, heads, keys, width))


class MemoryBench(Bench):
    """Measurements of kernels that are bound by memory."""

    def __init__(self, watch: Stopwatch, dtype: torch.dtype, grids: Grids) -> None:
        super().__init__(watch, dtype, grids)
        self.found = MemoryFigures()

    def overheads(self, seconds: float) -> None:
        """Measure the launch of a kernel that does next to nothing, and the read of a number that is there."""
        budget = Budget(seconds, 2, self.watch.clock)
        few = torch.ones(4, dtype=self.dtype, device=self.watch.device)
        one = few[:1]
        times = [self.watch.time(lambda: torch.add(few, few, out=few), budget)]
        times.append(self.watch.time(one.item, budget, waits=True))
        self.found.launch_seconds, self.found.sync_seconds = (each.median for each in times)
        self.rows += [
            MeasuredPoint.of("launch", (few.nbytes,), times[0]),
            MeasuredPoint.of("read a number", (one.nbytes,), times[1]),
        ]

    def streaming(self, seconds: float) -> None:
        """Measure kernels that read two tensors and write one, by all the bytes they move."""
        budget = Budget(seconds, len(self.grids.memory), self.watch.clock)

        def measure(size: int) -> Times:
            count = size // (3 * self.dtype.itemsize)
            take = self.operands([(count,)] * 2, size, [(count,)])
            return self.just_written(take, lambda a, b, c: torch.mul(a, b, out=c), budget)

        self.found.memory = self._curve("memory", self.grids.memory, measure)

    def fresh(self, seconds: float) -> None:
        """Measure how much longer it takes to fill a new buffer than an old one."""
        if not self.grids.fresh:
            return
        budget = Budget(seconds, 2 * len(self.grids.fresh), self.watch.clock)

        def measure(size: int) -> Times:
            shape, dtype, device = (size // self.dtype.itemsize,), self.dtype, self.watch.device
            old = torch.zeros(shape, dtype=dtype, device=device)
            known = self.watch.time(partial(old.fill_, 0), budget)
            times = self.watch.time(lambda: torch.empty(shape, dtype=dtype, device=device).fill_(0), budget)
            return Times((max(times.median - known.median, size / FASTEST),))

        self.found.fresh = self._curve(PAGES, self.grids.fresh, measure)

    def compiled(self, seconds: float) -> None:
        """Measure Inductor's kernels: arithmetic, and transposes by bytes. Skipped if Inductor can't compile."""
        budget = Budget(seconds, 2 + len(self.grids.strided), self.watch.clock)
        try:
            if self.watch.device.type == "cpu":  # a GPU's arithmetic is hidden by its memory traffic
                self._softmax(budget)
            self._transposes(budget)
        except Exception as error:  # no compiler, no Triton: whatever it is, the figures of the base stay
            self.notes.append(f"Inductor's kernels are not measured: {str(error).splitlines()[0][:100]}")

    def _softmax(self, budget: Budget) -> None:
        """Measure two heights, which show the cost of a call besides its loops."""
        run = torch.compile(lambda x: torch.softmax(x, -1))
        seconds = []
        for rows in SOFTMAX_ROWS:
            shape = (rows, SOFTMAX_COLUMNS)
            call = partial(run, *_of_any_length(self._pool.take(shape)))
            with torch.no_grad():
                times = self.watch.time(call, budget, least=IN_A_ROW)
            self.rows.append(MeasuredPoint.moving("fused softmax", shape, times, 2 * prod(shape) * self.dtype.itemsize))
            seconds.append(times.median)
        self.found.element_rate = softmax_rate(*seconds)

    def _transposes(self, budget: Budget) -> None:
        run = torch.compile(lambda x: x.transpose(1, 2).contiguous())

        def measure(size: int) -> Times:
            shape = (size // (2 * self.dtype.itemsize * prod(TRANSPOSED)), *TRANSPOSED)
            take = self.operands([shape], size)
            return self.just_written(lambda: _of_any_length(take()), run, budget)

        self.found.strided = self._curve("fused transpose", self.grids.strided, measure)

    def _curve(self, section: str, sizes: tuple[int, ...], measure: Callable[[int], Times]) -> Curve:
        """Return the curve of bytes/s by size."""
        rows = [MeasuredPoint.moving(section, (size,), measure(size), size) for size in sizes]
        self.rows += rows
        return Curve(axes=(sizes,), values=tuple(row.rate or 0.0 for row in rows))


def softmax_rate(low: float, high: float) -> float:
    """Return elementwise operations/s, from the seconds of the softmax of each height.

    The common part of the two times is not arithmetic. It is a small part of the time, and more than that is noise.
    """
    ratio = SOFTMAX_ROWS[1] / SOFTMAX_ROWS[0]
    common = min(max((ratio * low - high) / (ratio - 1), 0.0), MOST_COMMON * high)
    return SOFTMAX_OPS * SOFTMAX_ROWS[1] * SOFTMAX_COLUMNS / (high - common)


def _of_any_length(operands: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """Let one kernel serve all lengths of the first dimension; the others are constants, as in a model."""
    for operand in operands:
        mark_dynamic(operand, 0)
    return operands
