# SPDX-License-Identifier: Apache-2.0
"""Loops over the experts that were hit, in Python source.

Contract: `lists_hits` tells expressions that list what occurs in data, whose length no graph knows; `OneElement` makes
a number of the variable of such a loop. That variable is a tensor of one element. `x[e]` with a tensor `e` that has a
dimension keeps a dimension that a number drops. The source does not say whether `e` has one: the caller does, or tries
both.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence

from farskip_compile.tools.prepare.emptiness import callee

FINDS = {"nonzero", "argwhere", "unique", "unique_consecutive", "set"}
"""Calls that list what occurs in data."""
SAME_ELEMENTS = {"tolist", "squeeze", "flatten", "view", "reshape", "detach", "cpu", "numpy", "long", "int", "to"}
"""Methods whose result holds the elements of their tensor."""
LISTS = {"sorted", "list", "tuple", "reversed", "enumerate", "zip"}
ROWS = "_farskip_rows"
"""Name of a function `rows(x, e)` that keeps the dimension."""


def lists_hits(node: ast.expr, values: Mapping[str, Sequence[ast.expr]], depth: int = 5) -> bool:
    """Return whether an expression is a list of what occurs in data.

    Args:
        node: the expression.
        values: the values that are assigned to each name.
        depth: the number of names that are followed to their values.
    """
    if isinstance(node, ast.Name):
        return depth > 0 and any(lists_hits(value, values, depth - 1) for value in values.get(node.id, ()))
    if isinstance(node, ast.Subscript):
        return lists_hits(node.value, values, depth)
    if not isinstance(node, ast.Call):
        return False
    name = callee(node)
    if name in FINDS or (name == "where" and len(node.args) == 1 and not node.keywords):
        return True
    sources: Sequence[ast.expr] = node.args if name in LISTS else ()
    if name in SAME_ELEMENTS and isinstance(node.func, ast.Attribute):
        sources = [node.func.value]
    if name == "range":  # over the length of such a list
        sources = [part for argument in node.args for part in ast.walk(argument) if isinstance(part, ast.Name)]
    return any(lists_hits(source, values, depth) for source in sources)


class _Number(ast.Name):
    """The variable of a loop, where its one element had been taken out of the tensor."""


class OneElement(ast.NodeTransformer):
    """A transformer that makes a number of the variable of a loop."""

    def __init__(self, name: str, rows: bool) -> None:
        self.name, self.rows = name, rows

    def _is_variable(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Name) and node.id == self.name

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        """Rewrite `e[0]` and `x[e]`."""
        self.generic_visit(node)
        if self._is_variable(node.value) and isinstance(node.slice, ast.Constant):
            return self._number(node)
        if self.rows and self._is_variable(node.slice) and not isinstance(node.slice, _Number):
            return ast.copy_location(calling(ROWS, node.value, node.slice), node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Rewrite `int(e)`, and `e.item()` and the like."""
        self.generic_visit(node)
        method = isinstance(node.func, ast.Attribute) and self._is_variable(node.func.value)
        if method and callee(node) in SAME_ELEMENTS | {"item"}:
            return self._number(node)
        if callee(node) == "int" and len(node.args) == 1 and self._is_variable(node.args[0]):
            return self._number(node)
        return node

    def _number(self, node: ast.expr) -> ast.Name:
        return ast.copy_location(_Number(self.name, ast.Load()), node)


def calling(name: str, *arguments: ast.expr) -> ast.Call:
    """Return the call `name(*arguments)`."""
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])
