# SPDX-License-Identifier: Apache-2.0
"""Numbers for symbolic sizes, good enough to estimate costs with.

In:    an ATen graph, forward or backward.
Out:   a function from sizes to numbers.
Never: installs a guard, or changes the graph; its shape environment gets the estimates if `tell_inductor` is called.

Sizes of inputs have the values of the example inputs. Sizes that depend on data (the rows of the experts) have none,
and are estimated:
1. A symbol with a hint has that value: the user's, or in a backward graph the forward graph's hint to Inductor.
2. An equality that the program asserts at run time, such as `u0 + u1 + u2 = 4 s0`, is divided evenly among its
   unknown symbols.
3. An all-to-all with split lists: the side whose rows are known is that of the tokens, which are divided evenly among
   the unknown symbols of its list. The other side, that of the experts, has `imbalance` times as many: as many as
   the fullest rank, which the others wait for.
   Steps 2 and 3 are repeated until nothing new is learnt. (The first exchange of a backward graph may know the rows of
   neither side; then it is the equality asserted by the forward that helps.)
4. Symbols of a split list that are still unknown share `fallback` rows; any other symbol counts as `fallback`, brought
   into the range that is known for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sympy
import torch
from torch import fx

from farskip_compile._compat.costs import SymbolicSizes
from farskip_compile.costs.memory import NodeBytes, tensors_of
from farskip_compile.passes.graph import comms, ops

FALLBACK = 4096
"""Rows of a size about which nothing is known."""


_Side = tuple[sympy.Expr, tuple[sympy.Expr, ...]]
"""The input or the output of an all-to-all: its rows, and the list that splits them."""


class SizeHints(NodeBytes):
    """A callable that turns a size of a graph into a number.

    Args:
        graph: its exchanges say how data-dependent sizes are estimated.
        fallback: the number for a size about which nothing is known.
        imbalance: rows that the fullest rank gets in a dispatch, over the mean.
    """

    def __init__(self, graph: fx.Graph, *, fallback: int = FALLBACK, imbalance: float = 1.0) -> None:
        super().__init__()
        self._graph = graph
        self.fallback = fallback
        self.imbalance = imbalance
        self._sizes = SymbolicSizes.of(value for node in graph.nodes for value in _lengths(ops.fake(node)))
        self._numbers: dict[sympy.Symbol, int] = dict(self._sizes.known())
        self._cache: dict[sympy.Expr, int] = {}
        self._learn([pair for node in ops.calls(graph, comms.is_all_to_all) if (pair := self._exchange(node))])

    def __call__(self, length: int | torch.SymInt | sympy.Expr) -> int:
        """Return the number for `length`, a size or an expression of the graph's symbols; never negative."""
        if type(length) is int:
            return length
        expr = self._sizes.expression(length)
        if expr not in self._cache:
            self._cache[expr] = self._evaluate(expr)
        return self._cache[expr]

    def tell_inductor(self) -> None:
        """Give Inductor the estimates of this graph's sizes that depend on data, as hints.

        Inductor counts such tensors as empty otherwise: when it orders kernels for less memory, and when it keeps the
        block of a dead tensor for a later one, which is free if nothing else seems to be alive.
        """
        if not self._sizes.depend_on_data():
            return
        lengths = (length for node in self._graph.nodes for length in _lengths(ops.fake(node)))
        symbolic = (self._sizes.expression(length) for length in lengths if isinstance(length, torch.SymInt))
        self._sizes.hint({symbol: self(symbol) for expr in symbolic for symbol in expr.free_symbols})

    def _evaluate(self, expr: sympy.Expr) -> int:
        values = {s: self._numbers[s] if s in self._numbers else self._guess(s) for s in expr.free_symbols}
        try:
            return max(int(expr.xreplace(values)), 0)
        except (TypeError, ValueError, ZeroDivisionError):  # a division by an estimate of zero
            return self.fallback

    def _guess(self, symbol: sympy.Symbol) -> int:
        lower, upper = self._sizes.range(symbol)
        return max(lower, self.fallback if upper is None else min(self.fallback, upper))

    def _learn(self, exchanges: Sequence[tuple[_Side, _Side]]) -> None:
        equalities = self._sizes.equalities()
        learning = True
        while learning:
            learning = False
            for left, right in equalities:
                learning |= self._share([left], right) or self._share([right], left)
            for source, result in exchanges:
                for (rows, splits), (others, _) in ((source, result), (result, source)):
                    learning |= self._share(splits, rows)
                    learning |= self._share(splits, others, self.imbalance)
        for _, splits in (side for pair in exchanges for side in pair):
            self._share(splits, sympy.Integer(self.fallback))

    def _share(self, parts: Sequence[sympy.Expr], total: sympy.Expr, times: float = 1.0) -> bool:
        """Divide `times` `total` among the unknown symbols of the sum of `parts`; return whether any became known.

        Nothing happens if `total` has unknown symbols itself, or an unknown symbol is in more than a plain term.
        """
        if not self._knows(total) or all(map(self._knows, parts)):
            return False
        rest, unknown = round(times * self._evaluate(total)), []
        for term, factor in _terms(parts):
            if self._knows(term):
                rest -= int(factor) * self._evaluate(term)
            elif term.is_Symbol and factor == 1:
                unknown.append(term)
            else:
                return False
        share, extra = divmod(max(rest, 0), max(len(unknown), 1))
        self._numbers.update({symbol: share + (i < extra) for i, symbol in enumerate(unknown)})
        return bool(unknown)

    def _knows(self, expr: sympy.Expr) -> bool:
        return all(symbol in self._numbers for symbol in expr.free_symbols)

    def _exchange(self, node: fx.Node) -> tuple[_Side, _Side] | None:
        """Return (input, output) of an all-to-all; None if it has no split lists."""
        if len(node.args) < 3:
            return None
        tensor, output_splits, input_splits = node.args[:3]
        source, result = self._side(tensor, input_splits), self._side(node, output_splits)
        return (source, result) if source and result else None

    def _side(self, node: object, splits: object) -> _Side | None:
        value = ops.tensor(node) if isinstance(node, fx.Node) else None
        if value is None or not isinstance(splits, list | tuple):
            return None
        lengths = (ops.fake(entry) if isinstance(entry, fx.Node) else entry for entry in splits)
        return self._sizes.expression(value.shape[0]), tuple(map(self._sizes.expression, lengths))


def _lengths(value: object) -> Iterator[Any]:
    """Yield every size in the value of a node."""
    if isinstance(value, torch.SymInt):
        yield value
    for tensor in tensors_of(value):
        yield from tensor.shape


def _terms(parts: Sequence[sympy.Expr]) -> Iterator[tuple[sympy.Expr, sympy.Expr]]:
    """Yield (term, factor) of the sum of `parts`, in an order that does not depend on hashes."""
    for part in parts:
        terms = sympy.Add.make_args(sympy.expand(part))
        pairs = [term.as_coeff_Mul()[::-1] for term in terms]
        yield from sorted(pairs, key=lambda pair: (len(str(pair[0])), str(pair[0])))
