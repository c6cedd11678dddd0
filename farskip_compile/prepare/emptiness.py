"""Tests in Python source that ask how large a selection of tokens is.

Contract: the expression of an `if` in a loop comes in; out goes its value for a small selection (an empty one, or one
within a capacity), or None if it is no such test: `mask.any()`, `idx.numel() == 0`, `len(idx)`, `not n`, `start == end`,
`counts[e].item() > 0`, `len(idx) <= capacity` and the like. A test that asks two things is none: inputs on both sides of
one bound are found by trying, of two they may not be. Names that only count iterations (`loop_names`) say nothing of
data.
"""

from __future__ import annotations

import ast
from collections.abc import Set

MEASURES = {"any", "numel", "nelement", "sum", "item", "size", "count_nonzero", "len", "max"}
"""Functions and methods that are false or zero for an empty selection."""
NUMBERS: dict[type[ast.cmpop], dict[int, bool]] = {
    ast.Eq: {0: True},
    ast.NotEq: {0: False},
    ast.Gt: {0: False},
    ast.LtE: {0: True},
    ast.Lt: {1: True},
    ast.GtE: {1: False},
}
"""Comparison of a count with zero or one -> what it gives for zero."""
MIRRORED: dict[type[ast.cmpop], type[ast.cmpop]] = {ast.Gt: ast.Lt, ast.Lt: ast.Gt, ast.GtE: ast.LtE, ast.LtE: ast.GtE}
BOUNDS: dict[type[ast.cmpop], bool] = {
    ast.Eq: True,
    ast.NotEq: False,
    ast.Gt: False,
    ast.Lt: False,
    ast.GtE: True,
    ast.LtE: True,
}
"""Comparison of the ends of a slice, or with a capacity -> what it gives for an empty slice, or below the capacity."""


def empty_when(test: ast.expr, static: Set[str], bound: Set[str]) -> bool | None:
    """The value of `test` for a small selection, or None.

    Args:
        static: names that only count iterations, and the module itself.
        bound: names that a loop around the test assigns.
    """
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = empty_when(test.operand, static, bound)
        return None if inner is None else not inner
    if names_in(test) <= static:
        return None
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        return _compared(test.left, type(test.ops[0]), test.comparators[0], static)
    if isinstance(test, ast.Call) and callee(test) == "bool" and len(test.args) == 1:
        return empty_when(test.args[0], static, bound)
    return False if _is_measure(test) or (isinstance(test, ast.Name) and test.id in bound - static) else None


def _compared(left: ast.expr, op: type[ast.cmpop], right: ast.expr, static: Set[str]) -> bool | None:
    if isinstance(left, ast.Constant):
        left, op, right = right, MIRRORED.get(op, op), left
    if not (_is_measure(left) or isinstance(left, ast.Name)) or names_in(left) <= static:
        return None
    if isinstance(right, ast.Constant) and right.value in (0, 1):
        return NUMBERS.get(op, {}).get(right.value)
    return BOUNDS.get(op) if isinstance(right, ast.Constant | ast.Name | ast.Attribute | ast.Subscript) else None


def _is_measure(node: ast.expr) -> bool:
    """A call of a measure, or an element: `x.shape[0]`, `counts[e]`."""
    return isinstance(node, ast.Subscript) or (isinstance(node, ast.Call) and callee(node) in MEASURES)


def callee(call: ast.Call) -> str:
    """The last name of what is called."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def names_in(node: ast.AST) -> set[str]:
    """Names that an expression reads."""
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)} - {"len", "bool", "int", "torch"}


def loop_names(target: ast.expr, iterable: ast.expr) -> tuple[set[str], set[str]]:
    """The names that a loop binds, and which of them only count iterations."""
    bound = names_in(target)
    function = callee(iterable) if isinstance(iterable, ast.Call) else ""
    if function == "range":
        return bound, bound
    if function == "enumerate" and isinstance(target, ast.Tuple):
        return bound, names_in(target.elts[0])
    return bound, set()
