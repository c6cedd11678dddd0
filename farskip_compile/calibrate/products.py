"""Measures products by their shape: dense, grouped, and attention forward and backward.

In:    a stopwatch, a type, the grids, a budget.
Out:   rows, and a `Curve` of FLOP/s for each kind of product.
Never: communicates.

A call's launch overhead is taken out of its time, since the cost model adds it to every kernel. Left operands are
written shortly before, as the operator before would; weights and results are wherever they happen to be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from math import prod

import torch
import torch.nn.functional as F

from farskip_compile.calibrate.results import Row
from farskip_compile.calibrate.settings import Axes, Budget, Grids
from farskip_compile.calibrate.stopwatch import Pool, Stopwatch, Times, rotating, time_just_written
from farskip_compile.costs import Curve

LABELS = {"attention_backward": "attention bwd", "grouped_matmul": "grouped matmul"}
CACHE = 64 * 2**20
"""Bytes of operands after which the first ones are no longer in a cache."""


class Products:
    """Measures on one device with one type; rows and notes collect in it.

    Args:
        watch: times the calls.
        dtype: of all operands.
        grids: which shapes.
        launch_seconds: overhead of a call, which is taken out of its time.
    """

    def __init__(self, watch: Stopwatch, dtype: torch.dtype, grids: Grids, launch_seconds: float) -> None:
        self.watch, self.dtype, self.grids, self.launch = watch, dtype, grids, launch_seconds
        self.name = str(dtype).removeprefix("torch.")
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self._pool = Pool(watch.device, dtype, CACHE)
        # results of results shrink to denormal numbers, which are a hundred times as slow: no operand is a result
        self._results = Pool(watch.device, dtype, CACHE)

    def measure(self, seconds: float) -> dict[str, Curve]:
        """Kind of product, as a field of `costs.Curves`, and its curve; kinds that do not run here are left out."""
        grids = self.grids
        backward = tuple(axis[-2:] for axis in grids.attention[:2]) + grids.attention[2:]
        plans: tuple[tuple[str, Axes, Callable[..., tuple[Times, float]]], ...] = (
            ("matmul", grids.matmul, self._matmul),
            ("grouped_matmul", grids.grouped, self._grouped),
            ("attention", grids.attention, self._attention),
            ("attention_backward", backward, self._attention_backward),
        )
        points = {kind: prod(map(len, axes)) for kind, axes, _ in plans}
        found = {}
        for kind, axes, measure in plans:
            share = seconds * points[kind] / sum(points.values())
            budget = Budget(share, points[kind], self.watch.clock)
            try:
                found[kind] = self._curve(kind, axes, measure, budget)
            except (RuntimeError, NotImplementedError) as error:
                self.notes.append(f"{kind} {self.name} does not run here: {str(error).splitlines()[0][:100]}")
        return found

    def _curve(self, kind: str, axes: Axes, measure: Callable[..., tuple[Times, float]], budget: Budget) -> Curve:
        rates, rows = [], []
        for shape in product(*axes):
            times, flops = measure(*shape, budget)
            seconds = max(times.median - self.launch, 0.1 * times.median)
            rates.append(flops / seconds)
            section = f"{LABELS.get(kind, kind)} {self.name}"
            rows.append(Row(section, shape, times.median, times.spread, len(times.seconds), rates[-1], "FLOP/s"))
        self.rows += rows
        return Curve(axes=axes, values=tuple(rates))

    def _matmul(self, rows: int, inner: int, columns: int, budget: Budget) -> tuple[Times, float]:
        """By a weight [columns, inner], as in a linear layer."""
        numbers = rows * inner + columns * inner + rows * columns
        take = rotating(
            lambda: [*self._pool.take((rows, inner), (columns, inner)), *self._results.take((rows, columns))],
            CACHE // (numbers * self.dtype.itemsize),
        )
        times = self._run(take, lambda x, w, y: torch.mm(x, w.t(), out=y), budget)
        return times, 2.0 * rows * inner * columns

    def _grouped(self, rows: int, inner: int, columns: int, budget: Budget) -> tuple[Times, float]:
        groups, device = self.grids.groups, self.watch.device
        ends = torch.arange(1, groups + 1, dtype=torch.int32, device=device) * rows
        take = rotating(
            lambda: self._pool.take((groups * rows, inner), (groups, columns, inner)),
            CACHE // (groups * (rows + columns) * inner * self.dtype.itemsize),
        )
        times = self._run(take, lambda x, w: F.grouped_mm(x, w.transpose(1, 2), offs=ends), budget)
        return times, 2.0 * groups * rows * inner * columns

    def _attention(self, queries: int, keys: int, width: int, budget: Budget) -> tuple[Times, float]:
        """Without a mask: what a causal one saves is a matter of `OpCost.executed`."""
        heads = self.grids.heads
        take = rotating(lambda: self._heads(queries, keys, width), 4)
        times = self._run(take, F.scaled_dot_product_attention, budget)
        return times, 4.0 * heads * queries * keys * width

    def _attention_backward(self, queries: int, keys: int, width: int, budget: Budget) -> tuple[Times, float]:
        heads = self.grids.heads
        inputs = [part.clone().requires_grad_() for part in self._heads(queries, keys, width)]
        with torch.enable_grad():
            out = F.scaled_dot_product_attention(inputs[0], inputs[1], inputs[2])
        gradient = torch.ones_like(out)
        times = self.watch.time(lambda: torch.autograd.grad(out, inputs, gradient, retain_graph=True), budget)
        return times, 10.0 * heads * queries * keys * width

    def _heads(self, queries: int, keys: int, width: int) -> list[torch.Tensor]:
        heads = self.grids.heads
        return self._pool.take((1, heads, queries, width), (1, heads, keys, width), (1, heads, keys, width))

    def _run(self, take: Callable[[], Sequence[torch.Tensor]], call: Callable[..., object], budget: Budget) -> Times:
        return time_just_written(self.watch, take, call, budget)
