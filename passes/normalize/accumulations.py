# SPDX-License-Identifier: Apache-2.0
"""Marks for the addends of accumulations: `shared.index_add(0, i, routed)` is a sum of two.

In:    a graph in single-assignment form.
Out:   the same graph. The put of a sum with the rows that it replaces (`a[i] += x`) is one call (`puts`). In front of
       each accumulation stands a mark, the addend on zeros, which nothing uses: with it the accumulation can be read as
       the sum of its base and the mark (`addends`), and either part be left out of a sub-block's reads.
       `lower` erases unused marks, writes used ones as the accumulation that they stand for, and puts out.
Never: touches an accumulation into zeros, which is a value of its own already.

Accumulations are `index_add`, `scatter_add`, `scatter_reduce` of a sum, `index_put` with `accumulate`, and `put_sum`. A
mark is a claim: `verify.values` compares its arguments with those of the accumulation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import fx

from farskip_compile.passes.graph import ops
from farskip_compile.passes.graph.walk import fresh_like
from farskip_compile.passes.normalize.puts import join_put_of_sum, part_put_of_sum, put_of_sum, put_sum

MARK = "farskip_adds"
"""In the meta of an accumulation: the name of its mark."""
STANDS_FOR = "farskip_accumulation"
"""In the meta of a mark: kind and target of the node that it stands for."""
ADDING = frozenset(["index_add", "scatter_add", "scatter_reduce", "index_put", "put_sum"])
"""Operators that may be accumulations."""


def added_alone(base: torch.Tensor, *args: object, **kwargs: object) -> NoReturn:
    """A mark: what an accumulation adds to `base`. It is lowered before anything runs."""
    raise AssertionError("a mark of farskip-compile was left in a graph")


def mark_accumulations(graph: fx.Graph) -> int:
    """Mark what the accumulations of `graph` add; returns how many were marked."""
    empty: set[fx.Node] = set()
    marked = 0
    for node in list(graph.nodes):
        name = ops.op_name(node)
        base = node.args[0] if node.args else None
        if (name in ops.ZEROS and ops.is_zeros(node)) or (base in empty and name in ops.SHAPE_OPS):
            empty.add(node)
        if name == "index_put" and (found := put_of_sum(node)) is not None:
            if base in empty:
                empty.add(node)
                continue
            join_put_of_sum(node, *found)
            name = "put_sum"
        if name not in ADDING or not isinstance(base, fx.Node) or not ops.is_floating(node):
            continue
        added = _added(node, name)
        if added is None:
            continue
        if base in empty:
            empty.add(node)
            continue
        with graph.inserting_before(node):
            mark = graph.call_function(added_alone, (base, *added[1]), dict(added[2]))
        mark.meta = {**node.meta, STANDS_FOR: (node.op, added[0])}
        value = ops.tensor(node)
        assert value is not None
        mark.meta["example_value"] = fresh_like(value)
        node.meta[MARK] = mark.name
        marked += 1
    return marked


def addends(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """For each marked accumulation its mark."""
    marked = [node for node in graph.nodes if MARK in node.meta and node.target is not added_alone]
    if not marked:
        return {}
    by_name = {node.name: node for node in graph.nodes if node.target is added_alone}
    return {node: by_name[node.meta[MARK]] for node in marked if node.meta[MARK] in by_name}


def lower(graph: fx.Graph) -> int:
    """Erase the marks of `graph`, and write out `put_sum`; returns how many marks were used."""
    used = 0
    for node in list(graph.nodes):
        node.meta.pop(MARK, None)
        if node.target is not added_alone:
            continue
        if node.users:
            _write_out(graph, node)
            used += 1
        graph.erase_node(node)
    for node in graph.find_nodes(op="call_function", target=put_sum):
        part_put_of_sum(graph, node)
    return used


def _write_out(graph: fx.Graph, mark: fx.Node) -> None:
    base = mark.args[0]
    assert isinstance(base, fx.Node)
    kind, target = mark.meta.pop(STANDS_FOR)
    with graph.inserting_before(mark):
        zeros = graph.call_function(torch.zeros_like, (base,))
        whole = graph.create_node(kind, target, (zeros, *mark.args[1:]), dict(mark.kwargs))
    zeros.meta = {**mark.meta, "example_value": fresh_like(mark.meta["example_value"])}
    whole.meta = dict(mark.meta)
    mark.replace_all_uses_with(whole)


def _added(node: fx.Node, name: str) -> tuple[Any, tuple[Any, ...], Mapping[str, Any]] | None:
    """What an accumulation calls, and its arguments after the base; None if `node`, one of `ADDING`, is none."""
    if name != "index_put":
        return (node.target, node.args[1:], node.kwargs) if name != "scatter_reduce" or _sums(node) else None
    if len(node.args) > 3 or "accumulate" in node.kwargs:
        accumulates = node.args[3] if len(node.args) > 3 else node.kwargs["accumulate"]
        return (node.target, node.args[1:], node.kwargs) if accumulates is True else None
    return None


def _sums(node: fx.Node) -> bool:
    reduce = node.args[4] if len(node.args) > 4 else node.kwargs.get("reduce")
    include = node.args[5] if len(node.args) > 5 else node.kwargs.get("include_self", True)
    return reduce == "sum" and include is True
