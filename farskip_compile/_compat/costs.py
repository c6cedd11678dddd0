# SPDX-License-Identifier: Apache-2.0
"""The private PyTorch APIs behind the cost model; a part of `_compat`.

Contract: sizes are read off expressions, never compared or converted as symbolic numbers: that would install guards.
What we tell a `ShapeEnv` is noted on it, so that it can be asked again as if we had not.
Checked by running on torch 2.11.0, 2.13.0 and 2.15.0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import sympy
import torch
from torch._inductor.sizevars import SizeVarAllocator
from torch.utils import flop_counter
from torch.utils.flop_counter import sdpa_flop_count

HINTS_REACH_MEMORY = not hasattr(SizeVarAllocator, "size_hint")
"""Whether Inductor's estimates of memory take hints for sizes that depend on data. On 2.11 they count such tensors as
empty, whatever is known: orders of a model that routes without drops may hold more there than the limit says."""


def _grouped_queries(formula: Callable[..., int], queries: int) -> Callable[..., int]:
    """On 2.11 formulas of attention refuse fewer heads of keys and values than of queries: count as many of them.

    `queries` is their position among the shapes that a formula takes; keys and values come after them.
    """

    def counted(*args: Any, **kwargs: Any) -> int:
        heads = args[queries].shape[1]
        widened = list(args)
        for position in (queries + 1, queries + 2):
            batch, _, *rest = args[position].shape
            widened[position] = type(args[position])((batch, heads, *rest))
        return formula(*widened, **kwargs)

    return counted


def _registry() -> dict[Any, Any]:
    """Operator -> its FLOP formula: torch's own registry, so that formulas of the user's count too."""
    registry: dict[Any, Any] = flop_counter.flop_registry
    try:
        sdpa_flop_count((1, 2, 1, 1), (1, 1, 1, 1), (1, 1, 1, 1))
    except AssertionError:
        changed = dict(registry)
        for target, formula in registry.items():
            if "scaled_dot_product" in str(target):
                changed[target] = _grouped_queries(formula, 1 if "backward" in str(target) else 0)
        return changed
    return registry


flop_registry = _registry()


def register_flop_formula(target: Any) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Make a formula, of shapes, the one of an operator of ours, for torch's own counter as well."""

    def register(formula: Callable[..., int]) -> Callable[..., int]:
        flop_counter.register_flop_formula(target)(formula)
        flop_registry.setdefault(target, flop_counter.flop_registry[target])
        return formula

    return register


_TOLD = "_told_by_farskip"
"""Attribute of a `ShapeEnv`: the symbols whose hints are ours."""


@contextmanager
def untold(env: Any) -> Iterator[None]:
    """In the `with` block the `ShapeEnv` has the user's hints for sizes that depend on data, and none of ours."""
    hints = env.var_to_hint_override
    ours = {symbol: hints.pop(symbol) for symbol in getattr(env, _TOLD, ())}
    try:
        yield
    finally:
        hints.update(ours)


class SymbolicSizes:
    """What a `ShapeEnv` (None if no size is symbolic) knows of the symbols in sizes."""

    def __init__(self, env: Any) -> None:
        self._env = env

    @classmethod
    def of(cls, lengths: Iterable[int | torch.SymInt]) -> SymbolicSizes:
        """Of the environment that the first symbolic size among `lengths` belongs to."""
        return cls(next((x.node.shape_env for x in lengths if isinstance(x, torch.SymInt)), None))

    def expression(self, length: Any) -> sympy.Expr:
        """`length` (an int, a `SymInt` or an expression) as an expression of the symbols that remain."""
        if isinstance(length, torch.SymInt):
            return sympy.sympify(length.node.expr)
        expr = sympy.sympify(length)
        return self._env.replace(expr) if self._env is not None and expr.free_symbols else expr

    def known(self) -> dict[sympy.Symbol, int]:
        """Values of the example inputs, and the user's hints for sizes that depend on data."""
        if self._env is None:
            return {}
        values = {**self._env.var_to_hint_override, **self._env.backed_var_to_val}
        return {symbol: int(value) for symbol, value in values.items() if symbol.is_integer}

    def depend_on_data(self) -> bool:
        """Whether there is any size whose value nobody knows yet."""
        return any(map(self._env.is_unbacked_symint, self._env.var_to_range)) if self._env is not None else False

    def hint(self, numbers: Mapping[sympy.Symbol, int]) -> None:
        """Tell Inductor sizes that depend on data, as `torch._dynamo.override_optimization_hint` does."""
        if self._env is not None:
            hints = self._env.var_to_hint_override
            ours = self._env.__dict__.setdefault(_TOLD, set())
            ours |= {symbol for symbol in numbers if self._env.is_unbacked_symint(symbol) and symbol not in hints}
            hints.update({symbol: numbers[symbol] for symbol in numbers if symbol in ours})

    def equalities(self) -> list[tuple[sympy.Expr, sympy.Expr]]:
        """Equalities of sizes that the program asserts when it runs, in the order in which it was traced."""
        asserts = getattr(self._env, "deferred_runtime_asserts", {})
        found = [entry.expr for entries in asserts.values() for entry in entries if isinstance(entry.expr, sympy.Eq)]
        return [(self.expression(equal.lhs), self.expression(equal.rhs)) for equal in found]

    def range(self, symbol: sympy.Symbol) -> tuple[int, int | None]:
        """(smallest, largest) value of a symbol that is zero or more; None: unbounded."""
        bounds = getattr(self._env, "var_to_range", {}).get(symbol)
        if bounds is None:
            return 0, None
        lower, upper = bounds.lower, bounds.upper
        return max(int(lower), 0) if lower.is_Integer else 0, int(upper) if upper.is_Integer else None
