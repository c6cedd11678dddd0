# SPDX-License-Identifier: Apache-2.0
"""The rewriter of sites that depend on data in the loops of a syntax tree.

Contract: the tree of a function comes in, a rewritten copy goes out (`LoopRewriter.rewrite`); the sites are in `found`,
and texts about forms that are not known in `cant`. A site is known by its place in the file, so that it means the same
in every copy. `loop_source` lists the kinds of sites.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from farskip_compile.tools.prepare.emptiness import (
    argument_names,
    asks_for_a_length,
    callee,
    empty_when,
    measures,
    names_in,
    names_on_data,
)
from farskip_compile.tools.prepare.hits import OneElement, calling, lists_hits

SAW, COUNTS = "_farskip_saw", "_farskip_counts"
"""Names of the functions that rewritten code calls."""


class LoopSite(NamedTuple):
    """A place in a loop that depends on data."""

    kind: str
    """`guard`, `hit`, `count` or `list`."""
    line: int
    column: int


@dataclass(frozen=True)
class LoopRequest:
    """The sites that `LoopSource.compiled` rewrites, and how."""

    sites: frozenset[LoopSite] = frozenset()
    """The sites that are rewritten; the others stay."""
    experts: int = 0
    """The length of the loops in place of loops over hits."""
    rows: bool = False
    """True if `x[e]` keeps a dimension of length one."""
    watch: Callable[[LoopSite, Any], Any] | None = None
    """A function that is called with the value of the test of each guard, and returns it."""


class LoopRewriter(ast.NodeTransformer):
    """A transformer of one tree, which finds the sites and rewrites those of a request."""

    def __init__(self, request: LoopRequest) -> None:
        self.request = request
        self.found: list[LoopSite] = []
        self.cant: list[str] = []
        self.looped = False
        self.depth = 0
        """The number of loops around the current node."""
        self.data: set[str] = set()
        self.arguments: set[str] = set()
        self.values: dict[str, list[ast.expr]] = {}
        self.only_indices: set[str] = set()
        """Names that are read within brackets only."""

    def rewrite(self, tree: ast.FunctionDef) -> ast.FunctionDef:
        """Return a rewritten copy of `tree`."""
        tree = copy.deepcopy(tree)
        self.data, self.arguments = names_on_data(tree), argument_names(tree)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Assign):
                continue
            for target in node.targets:
                if isinstance(target, ast.Name):
                    self.values.setdefault(target.id, []).append(node.value)
        self.only_indices = _only_indices(tree)
        return ast.fix_missing_locations(self.generic_visit(tree))  # type: ignore[return-value]

    def _site(self, kind: str, node: ast.stmt | ast.expr) -> LoopSite:
        site = LoopSite(kind, node.lineno, node.col_offset)
        self.found.append(site)
        return site

    def visit_For(self, node: ast.For) -> ast.AST:
        """Rewrite a loop over hits, and the guards in any loop."""
        self.looped = True
        if self._lists_hits(node.iter):
            self._rewrite_loop_over_hits(node)
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1
        return node

    def _lists_hits(self, node: ast.expr) -> bool:
        return bool(names_in(node) & self.data) and lists_hits(node, self.values)

    def _empty_when(self, test: ast.expr) -> bool | None:
        if isinstance(test, ast.Name) and test.id in self.arguments:  # an option
            return None
        if not self.depth and not asks_for_a_length(test):
            return None
        return empty_when(test, self.data)

    def _rewrite_loop_over_hits(self, node: ast.For) -> None:
        if not isinstance(node.target, ast.Name) or (isinstance(node.iter, ast.Call) and callee(node.iter) == "range"):
            self.cant.append(f"line {node.lineno}: a loop over what occurs in data, with more than that element")
            return
        if self._site("hit", node) in self.request.sites:
            name = node.target.id
            body = OneElement(name, self.request.rows)
            node.body = [body.visit(statement) for statement in node.body]
            node.iter = ast.copy_location(calling("range", ast.Constant(self.request.experts)), node.iter)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        """Rewrite an index that becomes a list."""
        self.generic_visit(node)
        value, target = node.value, node.targets[0]
        lists = isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "tolist"
        if (
            self.depth
            and lists
            and isinstance(target, ast.Name)
            and target.id in self.only_indices
            and self._site("list", node) in self.request.sites
        ):
            node.value = value.func.value  # type: ignore[attr-defined]
        return node

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        """Rewrite a guard."""
        value = self._empty_when(node.test)
        if value is None:
            if self.depth and measures(node.test, self.data):
                self.cant.append(f"line {node.lineno}: a test of data in a form that is not known")
            return self.generic_visit(node)
        if_empty, if_some = (node.body, node.orelse) if value else (node.orelse, node.body)
        if any(isinstance(part, ast.Break | ast.Return | ast.Raise) for line in if_empty for part in ast.walk(line)):
            self.cant.append(f"line {node.lineno}: an empty selection ends the loop")
            return self.generic_visit(node)
        site = self._site("guard", node)
        self.generic_visit(node)
        if site not in self.request.sites:
            node.test = self._watched(site, node.test)
            return node
        if_some = node.orelse if value else node.body
        return if_some or ast.copy_location(ast.Pass(), node)

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        """Rewrite a guard in an expression."""
        value = self._empty_when(node.test)
        if value is None:
            return self.generic_visit(node)
        site = self._site("guard", node)
        self.generic_visit(node)
        if site in self.request.sites:
            return node.orelse if value else node.body
        node.test = self._watched(site, node.test)
        return node

    def _watched(self, site: LoopSite, test: ast.expr) -> ast.expr:
        if self.request.watch is None:
            return test
        return ast.copy_location(calling(SAW, ast.Constant(site.line), ast.Constant(site.column), test), test)

    def _visit_comprehension(self, node: Any) -> ast.AST:
        self.looped = True
        self.depth += 1
        for part in node.generators:
            if self._lists_hits(part.iter):
                self.cant.append(f"line {node.lineno}: a loop over what occurs in data, in brackets")
            kept = []
            for test in part.ifs:
                if self._empty_when(test) is not False:
                    kept.append(test)
                elif (site := self._site("guard", test)) not in self.request.sites:
                    kept.append(self._watched(site, test))
            part.ifs = kept
        self.generic_visit(node)
        self.depth -= 1
        return node

    visit_ListComp = visit_GeneratorExp = visit_DictComp = visit_SetComp = _visit_comprehension

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Rewrite a count."""
        self.generic_visit(node)
        if not (isinstance(node.func, ast.Attribute) and node.func.attr == "bincount"):
            return node
        of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
        given = node.args if of_torch else [node.func.value, *node.args]
        if len(given) < 3 and not any(keyword.arg == "minlength" for keyword in node.keywords):
            self.cant.append(f"line {node.lineno}: the length of bincount without minlength depends on data")
        elif self._site("count", node) in self.request.sites:
            call = ast.Call(ast.Name(COUNTS, ast.Load()), given, node.keywords)
            return ast.copy_location(call, node)
        return node


def _only_indices(tree: ast.AST) -> set[str]:
    """Return the names that are read within brackets only."""
    in_brackets: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript):
            in_brackets |= {id(part) for part in ast.walk(node.slice)}
    reads = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
    return {node.id for node in reads} - {node.id for node in reads if id(node) not in in_brackets}
