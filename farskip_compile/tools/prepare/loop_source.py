# SPDX-License-Identifier: Apache-2.0
"""Sites in the source of a method that depend on data, and the same method without them.

Contract: a class comes in; out go the sites in the loops of its methods that a graph can't hold (`methods`), and
functions compiled from the source with these sites written otherwise (`LoopSource.compiled`). Nothing is run and
nothing is installed; `same_function` decides whether a new function is the same one. Names of models, classes and
attributes play no role, only Python and methods of tensors.

    site    before                                             after
    guard   `if idx.numel() == 0: continue`, `if mask.any():`  the branch for a selection that is not empty; outside of
                                                              loops only where the test asks for a length
    hit     `for e in mask.sum((-1, -2)).nonzero():`           `for e in range(experts):`
    count   `torch.bincount(chosen, minlength=n)`              a sum into n zeros, of fixed length
    list    `idx = idx.tolist()`, used as an index only        `idx = idx`
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch

from farskip_compile.tools.prepare.hits import ROWS
from farskip_compile.tools.prepare.loop_writer import COUNTS, SAW, LoopRequest, LoopRewriter, LoopSite
from farskip_compile.tools.prepare.recompile import recompiled


@dataclass(frozen=True)
class LoopSource:
    """The source of a method, and the sites in it."""

    function: Callable[..., Any]
    tree: ast.FunctionDef
    sites: tuple[LoopSite, ...]
    cant: tuple[str, ...] = ()
    """Texts about places that depend on data in a form that is not known, each with its line."""

    @property
    def has_hits(self) -> bool:
        """Return whether a loop is over the experts that were hit."""
        return any(site.kind == "hit" for site in self.sites)

    def compiled(self, request: LoopRequest) -> Callable[..., Any]:
        """Return the function with its sites as requested."""
        tree = LoopRewriter(request).rewrite(self.tree)
        return recompiled(self.function, tree, {SAW: _saw(request), ROWS: rows, COUNTS: counts})


def rows(value: Any, number: int) -> Any:
    """Return `value[number]`; a tensor keeps the dimension."""
    return value[[number]] if isinstance(value, torch.Tensor) else value[number]


def counts(values: torch.Tensor, weights: torch.Tensor | None = None, minlength: int = 0) -> torch.Tensor:
    """Return what `torch.bincount` does; a value of `minlength` or more is an error here."""
    if weights is not None or not minlength:
        return torch.bincount(values, weights, minlength)
    zeros = torch.zeros(minlength, dtype=torch.long, device=values.device)
    return zeros.scatter_add(0, values.long(), torch.ones_like(values, dtype=torch.long))


def _saw(request: LoopRequest) -> Callable[[int, int, Any], Any]:
    watch = request.watch

    def saw(line: int, column: int, value: Any) -> Any:
        return value if watch is None else watch(LoopSite("guard", line, column), value)

    return saw


def methods(kind: type) -> dict[str, LoopSource]:
    """Return the methods of a class with sites in them, by name: its forward, and those that it calls on itself."""
    found: dict[str, LoopSource] = {}
    names = ["forward"]
    for name in names:  # grows
        function = inspect.getattr_static(kind, name, None)
        if not isinstance(function, FunctionType) or function is vars(torch.nn.Module).get(name):
            continue
        tree = _syntax_tree(function)
        if tree is None:
            continue
        names += [called for called in _called_on_self(tree) if called not in names]
        finder = LoopRewriter(LoopRequest())
        finder.rewrite(tree)
        if finder.found or (finder.looped and finder.cant):
            found[name] = LoopSource(function, tree, tuple(finder.found), tuple(finder.cant))
    return found


def _syntax_tree(function: FunctionType) -> ast.FunctionDef | None:
    """Return the definition of a function, with the line numbers of its file, or None if there is no source."""
    plain = inspect.unwrap(function)
    try:
        lines, first = inspect.getsourcelines(plain)
        (tree,) = ast.parse(textwrap.dedent("".join(lines))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    if not isinstance(tree, ast.FunctionDef) or not isinstance(plain, FunctionType):
        return None
    ast.increment_lineno(tree, first - 1)
    return tree


def _called_on_self(tree: ast.FunctionDef) -> list[str]:
    """Return the names of the methods that are called on the first argument."""
    arguments = [argument.arg for argument in tree.args.args]
    owner = arguments[0] if arguments else ""
    found: dict[str, None] = {}
    for node in ast.walk(tree):
        function = node.func if isinstance(node, ast.Call) else None
        if isinstance(function, ast.Attribute) and getattr(function.value, "id", None) == owner:
            found[function.attr] = None
    return list(found)
