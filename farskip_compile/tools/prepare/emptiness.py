# SPDX-License-Identifier: Apache-2.0
"""Tests in Python source that ask how large a selection of tokens is.

Contract: the expression of an `if` in a loop comes in; out goes its value for a small selection (an empty one, or one
within a capacity), or None for any other test. Known are `mask.any()`, `idx.numel() == 0`, `len(idx)`, `not n`,
`start == end`, `counts[e].item() > 0`, `len(idx) <= capacity` and the like. A test that asks two things is not known:
inputs on both sides of one bound are found by trying, inputs on both sides of two bounds may not be. Names that count
iterations or come from the module alone say nothing of data (`names_on_data`).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Set

MEASURES = {"any", "numel", "nelement", "sum", "item", "size", "count_nonzero", "len", "max"}
"""Functions and methods that are false or zero for an empty selection."""
LENGTHS = {"numel", "nelement", "size", "len"}
"""Attributes and methods that read a shape, not data."""
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


def empty_when(test: ast.expr, data: Set[str]) -> bool | None:
    """Return the value of `test` for a small selection, or None.

    Args:
        test: the expression.
        data: names that depend on data (`names_on_data`).
    """
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = empty_when(test.operand, data)
        return None if inner is None else not inner
    if not names_in(test) & data:
        return None
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        return _compared(test.left, type(test.ops[0]), test.comparators[0], data)
    if isinstance(test, ast.Call) and callee(test) == "bool" and len(test.args) == 1:
        return empty_when(test.args[0], data)
    return False if _is_measure(test) or isinstance(test, ast.Name) else None


def asks_for_a_length(test: ast.expr) -> bool:
    """Return whether a test compares a length with zero: `x.numel() > 0`, `len(x) == 0`, `x.shape[0] != 0`."""
    if not isinstance(test, ast.Compare) or len(test.ops) != 1:
        return False
    sides = (test.left, test.comparators[0])
    zero = any(isinstance(side, ast.Constant) and side.value == 0 for side in sides)
    return zero and any(_is_length(side) for side in sides)


def _is_length(node: ast.expr) -> bool:
    if isinstance(node, ast.Subscript):
        return isinstance(node.value, ast.Attribute) and node.value.attr == "shape"
    return isinstance(node, ast.Call) and callee(node) in LENGTHS


def measures(test: ast.expr, data: Set[str]) -> bool:
    """Return whether a test asks data for anything at all, in any form."""
    calls = (part for part in ast.walk(test) if isinstance(part, ast.Call) and callee(part) in MEASURES)
    return any(names_in(call) & data for call in calls)


def _compared(left: ast.expr, op: type[ast.cmpop], right: ast.expr, data: Set[str]) -> bool | None:
    if isinstance(left, ast.Constant):
        left, op, right = right, MIRRORED.get(op, op), left
    if not (_is_measure(left) or isinstance(left, ast.Name)) or not names_in(left) & data:
        return None
    if isinstance(right, ast.Constant):
        number = right.value
        if type(number) is int and number in (0, 1):
            return NUMBERS.get(op, {}).get(number)
        return BOUNDS.get(op) if type(number) in (int, float) else None
    return BOUNDS.get(op) if isinstance(right, ast.Name | ast.Attribute | ast.Subscript) else None


def _is_measure(node: ast.expr) -> bool:
    """Return whether an expression is a call of a measure, or an element: `x.shape[0]`, `counts[e]`."""
    return isinstance(node, ast.Subscript) or (isinstance(node, ast.Call) and callee(node) in MEASURES)


def callee(call: ast.Call) -> str:
    """Return the last name of the function that is called."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def names_in(node: ast.AST) -> set[str]:
    """Return the names that an expression reads."""
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def argument_names(tree: ast.FunctionDef) -> set[str]:
    """Return the names of the arguments of a method, without the first."""
    arguments = [*[*tree.args.posonlyargs, *tree.args.args][1:], *tree.args.kwonlyargs]
    return {one.arg for one in (*arguments, tree.args.vararg, tree.args.kwarg) if one is not None}


def names_on_data(tree: ast.FunctionDef) -> set[str]:
    """Return the names in a method that may depend on its arguments.

    Names that count iterations do not, nor do names whose values are made of the module and of globals alone.
    """
    found = argument_names(tree)
    flows = list(_flows(tree))
    before = -1
    while len(found) > before:
        before = len(found)
        for target, value in flows:
            if names_in(value) & found:
                found |= set(_bound(target))
    return found


def _bound(target: ast.AST) -> Iterator[str]:
    """Yield the names that an assignment to `target` binds, or whose elements it writes."""
    if isinstance(target, ast.Name):
        yield target.id
    elif isinstance(target, ast.Subscript | ast.Starred):
        yield from _bound(target.value)
    elif isinstance(target, ast.Tuple | ast.List):
        for part in target.elts:
            yield from _bound(part)


def _flows(tree: ast.FunctionDef) -> Iterator[tuple[ast.AST, ast.expr]]:
    """Yield each target of an assignment with the value that it gets a part of."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            yield from ((target, node.value) for target in node.targets)
        elif isinstance(node, ast.AugAssign | ast.AnnAssign | ast.NamedExpr) and node.value is not None:
            yield node.target, node.value
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            yield node.optional_vars, node.context_expr
        elif isinstance(node, ast.For | ast.comprehension):
            function = callee(node.iter) if isinstance(node.iter, ast.Call) else ""
            if function == "enumerate" and isinstance(node.target, ast.Tuple):
                yield node.target.elts[-1], node.iter
            elif function != "range":
                yield node.target, node.iter
