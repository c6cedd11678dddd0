# SPDX-License-Identifier: Apache-2.0
"""Loops over experts that depend on data, in the source of a method, and the same method without them.

Contract: a function comes in; out go the sites in its loops that a graph can't hold (`read`), and functions compiled
from its source with these sites written otherwise (`LoopSource.compiled`). Nothing is run and nothing is installed;
whether a new function is the same one is decided elsewhere (`same_function`). Names of models, classes and attributes
play no role, only Python and methods of tensors.

    site    before                                             after
    guard   `if idx.numel() == 0: continue`, `if mask.any():`  what is done for a selection that is not empty; outside
                                                              of loops only of a test that asks for a length
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
    """A method and the sites in it."""

    function: Callable[..., Any]
    tree: ast.FunctionDef
    sites: tuple[LoopSite, ...]
    cant: tuple[str, ...] = ()
    """What depends on data in a form that is not known, with its line."""

    def compiled(self, request: LoopRequest) -> Callable[..., Any]:
        """The function with its sites as requested."""
        tree = LoopRewriter(request).rewrite(self.tree)
        return recompiled(self.function, tree, {SAW: _saw(request), ROWS: rows, COUNTS: counts})

    def place(self, line: int) -> str:
        """`file:line`."""
        return f"{inspect.unwrap(self.function).__code__.co_filename}:{line}"


def rows(value: Any, number: int) -> Any:
    """`value[number]`, where a tensor keeps the dimension."""
    return value[[number]] if isinstance(value, torch.Tensor) else value[number]


def counts(values: torch.Tensor, weights: torch.Tensor | None = None, minlength: int = 0) -> torch.Tensor:
    """`torch.bincount`, as long as no value is `minlength` or more, which is an error here."""
    if weights is not None or not minlength:
        return torch.bincount(values, weights, minlength)
    zeros = torch.zeros(minlength, dtype=torch.long, device=values.device)
    return zeros.scatter_add(0, values.long(), torch.ones_like(values, dtype=torch.long))


def _saw(request: LoopRequest) -> Callable[[int, int, Any], Any]:
    watch = request.watch
    return lambda line, column, value: watch(LoopSite("guard", line, column), value) if watch else value


def methods(kind: type) -> dict[str, LoopSource]:
    """The methods of a module's class with sites in them: its forward, and what that calls on the module itself."""
    found: dict[str, LoopSource] = {}
    names = ["forward"]
    for name in names:  # grows
        function = inspect.getattr_static(kind, name, None)
        if not isinstance(function, FunctionType) or function is vars(torch.nn.Module).get(name):
            continue
        if (tree := _tree(function)) is None:
            continue
        names += [called for called in _called(tree) if called not in names]
        finder = LoopRewriter(LoopRequest())
        finder.rewrite(tree)
        if finder.found or (finder.looped and finder.cant):
            found[name] = LoopSource(function, tree, tuple(finder.found), tuple(finder.cant))
    return found


def _tree(function: FunctionType) -> ast.FunctionDef | None:
    """The definition, with the line numbers of its file, or None if there is no source."""
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


def _called(tree: ast.FunctionDef) -> list[str]:
    """What is called on the first argument."""
    (owner, *_) = [argument.arg for argument in tree.args.args] or [""]
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    found = [f.attr for f in calls if isinstance(f, ast.Attribute) and getattr(f.value, "id", None) == owner]
    return list(dict.fromkeys(found))
