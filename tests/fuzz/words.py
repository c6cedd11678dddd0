# SPDX-License-Identifier: Apache-2.0
"""What an error may call things by: the user's operators and the nodes of Dynamo's graph, and nothing of our own.

In:    an error, and the graph as Dynamo made it, if it is known.
Out:   complaints.

The list of what is our own is read off the source of `passes`, whenever this runs: whatever a pass creates a node of,
and whatever it calls an entry of a node's meta.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

from torch import fx

from farskip_compile import passes
from farskip_compile.errors import FarSkipError
from farskip_compile.passes.graph import ops

ROOT = Path(str(passes.__file__)).parent
CREATES = frozenset(["call_function", "call_method", "create_node"])
META = re.compile(r"farskip_[a-z_]+")
PUBLIC = frozenset(["farskip_compile"])
"""The package, whose functions an error may name."""


@functools.cache
def made_by_passes() -> frozenset[str]:
    """Names of all operators that any pass writes into a graph, the user's own among them."""
    return frozenset(name for tree in _sources() for node in ast.walk(tree) for name in _created(node))


@functools.cache
def internal() -> frozenset[str]:
    """Names that are nobody's but ours: functions of passes that stand in graphs, and entries of metas."""
    trees = list(_sources())
    defined = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    constants = (node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant))
    metas = {value for value in constants if isinstance(value, str) and META.fullmatch(value)}
    return frozenset(made_by_passes() & defined) | (metas - PUBLIC)


def complaints(error: FarSkipError, graph: fx.Graph | None = None) -> list[str]:
    """Return what in the text of `error` a user can't know."""
    text = str(error)
    found = [f"{name} is internal" for name in sorted(internal()) if re.search(rf"\b{name}(_\d+)?\b", text)]
    if graph is None:
        return found
    names = {node.name for node in graph.nodes}
    called = {ops.op_name(node) for node in _all_nodes(graph)} | {"", *names}
    if error.where.node is not None and error.where.node not in names:
        found.append(f"no node of the user's graph is called {error.where.node}")
    quoted = set(re.findall(r"'([a-z_]\w*)'", error.reason))
    return found + [f"{name} was written by a pass" for name in sorted(quoted & made_by_passes() - called)]


def _all_nodes(graph: fx.Graph) -> Iterator[fx.Node]:
    """The nodes of a graph, and of the graphs that its owner holds: those of checkpoints."""
    owner = graph.owning_module
    graphs = [one.graph for one in owner.modules() if isinstance(one, fx.GraphModule)] if owner is not None else []
    for one in graphs or [graph]:
        yield from one.nodes


def _sources() -> Iterator[ast.Module]:
    for path in sorted(ROOT.rglob("*.py")):
        yield ast.parse(path.read_text())


def _created(node: ast.AST) -> Iterator[str]:
    """The names of what a statement or call writes into a graph: by a new node, or as the target of an old one."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CREATES:
        yield from _names(node.args[1 if node.func.attr == "create_node" else 0])
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            several = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
            pairs = zip(target.elts, node.value.elts, strict=True) if several else [(target, node.value)]  # type: ignore[attr-defined]
            for one, value in pairs:
                if isinstance(one, ast.Attribute) and one.attr == "target":
                    yield from _names(value)


def _names(value: ast.expr) -> Iterator[str]:
    """The last names of what an expression may be: `index_put` of `torch.ops.aten.index_put.default`."""
    if isinstance(value, ast.Constant):
        yield str(value.value)
    elif isinstance(value, ast.Name):
        yield value.id
    elif isinstance(value, ast.Attribute):
        yield from _names(value.value) if value.attr == "default" else [value.attr]
    elif isinstance(value, ast.IfExp):
        yield from (*_names(value.body), *_names(value.orelse))
    elif isinstance(value, ast.Call) and isinstance(value.func, ast.Name):
        for returned in _returned().get(value.func.id, ()):
            yield from _names(returned)


@functools.cache
def _returned() -> dict[str, list[ast.expr]]:
    """What each function of the passes returns, by its name."""
    functions = [node for tree in _sources() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {
        one.name: [line.value for line in ast.walk(one) if isinstance(line, ast.Return) and line.value is not None]
        for one in functions
    }
