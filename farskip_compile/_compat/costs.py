"""The private PyTorch APIs behind the cost model; a part of `_compat`.

Contract: sizes are read off expressions, never compared or converted as symbolic numbers: that would install guards.
Checked by running on torch 2.13.0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sympy
import torch
from torch.utils.flop_counter import flop_registry

__all__ = ["SymbolicSizes", "flop_registry"]


class SymbolicSizes:
    """What a shape environment knows of the symbols in sizes.

    Args:
        env: the `ShapeEnv` that the sizes belong to; None if no size is symbolic.
    """

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
        values = self._env.backed_var_to_val if hasattr(self._env, "backed_var_to_val") else self._env.var_to_val
        hints = getattr(self._env, "var_to_hint_override", {})
        return {symbol: int(value) for symbol, value in {**hints, **values}.items() if symbol.is_integer}

    def depend_on_data(self) -> bool:
        """Whether there is any size whose value nobody knows yet."""
        return any(map(self._env.is_unbacked_symint, self._env.var_to_range)) if self._env is not None else False

    def hint(self, numbers: Mapping[sympy.Symbol, int]) -> None:
        """Tell Inductor sizes that depend on data, as `torch._dynamo.override_optimization_hint` does."""
        hints = getattr(self._env, "var_to_hint_override", None)
        if hints is not None:
            hints.update({s: n for s, n in numbers.items() if self._env.is_unbacked_symint(s)})

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
