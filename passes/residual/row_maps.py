# SPDX-License-Identifier: Apache-2.0
"""Operators that pick, repeat, move or pad rows of the residual stream between two of its layers.

In:    the dependences of a graph, and the sums that count as one term.
Out:   for each such operator on the stream's way from layer to layer, the node whose rows it takes. The operator is
       linear in that node, so the residual sum goes on through it.
Never: takes an operator whose other arguments depend on the stream (tokens pruned by their values) or that takes rows
       of several parts of it, or one behind the last layer: what works there on each row by itself is a head.

Algorithm (linear; none of it where no sum has its rows taken):
1. Candidates: every operator that may take the rows of a sum.
2. Read the largest sum through all candidates; keep those between its base and its root.
3. Keep those with a layer in front, a layer or its feed-forward behind, and other arguments that do not depend on the
   sum. Begin again at 2 until all candidates are kept: a sum that ends earlier has fewer of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from torch import fx

from farskip_compile.passes.graph import ops
from farskip_compile.passes.graph.operators import Effect, names_with
from farskip_compile.passes.graph.walk import Predicate, spread, walk_back
from farskip_compile.passes.residual.sums import (
    Dataflow,
    Summands,
    SumTree,
    choose_base,
    depends_on,
    find_root,
    is_choice,
    sizes_of,
    summands_of,
)

RowMaps = Mapping[fx.Node, fx.Node]
"""For each row map, the node whose rows it takes."""
PICKS = names_with(Effect.ITEM, Effect.INDEX, Effect.PICK, Effect.PICK_ROWS, Effect.NARROW, Effect.SELECT, Effect.SLICE)
TAKES_FIRST = PICKS | ops.REPEATS | names_with(Effect.ROLL) | {"pad"}
"""Operators that are linear in their first argument but for a constant, and take rows of no other one."""
JOINS = names_with(Effect.JOIN)
FILLS = frozenset(["index_put", "index_copy", "scatter"])
"""Operators that write rows into their first argument: linear in the rows where that one is zeros."""

TAKES = TAKES_FIRST | JOINS | FILLS


def row_maps_of_stream(flow: Dataflow, whole: Set[fx.Node], size: Mapping[fx.Node, int]) -> RowMaps:
    """Find the row maps that the residual stream of a graph goes through.

    Args:
        flow: the dependences of the graph.
        whole: sums that count as one term.
        size: how many sums are below each node, row maps left aside.
    """
    found = _candidates(flow, size)  # 1
    while found:
        below = summands_of(flow, whole, found)
        tree = find_root(flow, below, sizes_of(flow.nodes, below))
        kept = {} if tree is None else _on_the_stream(flow, below, tree, found)  # 2, 3
        if len(kept) == len(found):
            break
        found = kept
    return found


def rows_taken(node: fx.Node, sums: Set[fx.Node]) -> fx.Node | None:
    """Return the only one of `sums` whose rows `node` takes; None if it is no row map of one of them."""
    name = ops.op_name(node)
    if name not in TAKES or not node.args:
        return None
    if name in TAKES_FIRST:
        rows = node.args[0]
    elif name in JOINS:
        parts = [part for part in node.all_input_nodes if part in sums]
        rows = parts[0] if len(parts) == 1 and list(node.args[0]).count(parts[0]) == 1 else None  # type: ignore[arg-type]
    else:
        rows = node.args[-1] if len(node.args) > 2 and ops.is_zeros(node.args[0]) else None
    if not isinstance(rows, fx.Node) or rows not in sums:
        return None
    return rows if ops.is_floating(rows) and ops.is_floating(node) else None


def step_of(node: fx.Node, rows: fx.Node) -> tuple[str, str]:
    """Return the operator of a row map and its arguments, but for the node whose rows it takes."""
    arguments = fx.map_arg((node.args, dict(node.kwargs)), lambda arg: None if arg is rows else arg.name)
    return ops.op_name(node), repr(arguments)


def _candidates(flow: Dataflow, size: Mapping[fx.Node, int]) -> RowMaps:
    sums = {node for node in flow.nodes if size[node]}
    found = {}
    for node in flow.nodes:
        name = ops.op_name(node)
        if name in TAKES and (rows := rows_taken(node, sums)) is not None:
            found[node] = rows
            sums.add(node)
        elif name in ops.SHAPE_OPS and node.args[0] in found:  # a view of rows whose rows may be taken
            sums.add(node)
    return found


def _on_the_stream(flow: Dataflow, below: Summands, tree: SumTree, found: RowMaps) -> RowMaps:
    parts = tree.parts()
    depends = depends_on(flow, parts)
    base = choose_base(flow, tree, depends)
    if base is None:
        return {}
    moving = {*parts, *depends}
    first, last = min(map(flow.order.__getitem__, parts)), flow.order[tree.root]
    span = flow.nodes[first : last + 1]
    weighted = spread((node for node in span if node in moving), flow.has_weight, flow.uses.__getitem__)
    parents = {arg: node for node in (*tree.inner, *tree.images[base]) for arg in below[node]}
    works = [flow.order[node] for node in span if node in moving and _makes_a_layer(flow, node)]
    node = tree.images[base][-1]
    passed, layers, is_open = {node}, 0, False

    def inside(one: fx.Node) -> bool:
        return one in moving and one not in passed

    kept: dict[fx.Node, fx.Node] = {}
    waiting: dict[fx.Node, fx.Node] = {}  # row maps in an open layer, for the feed-forward that closes it
    while node is not tree.root:
        chain, node = node, parents[node]
        added = [arg for arg in below[node] if arg is not chain]
        if not weighted.isdisjoint(walk_back(added, inputs=below.__getitem__)):
            kept.update(waiting)
            waiting, layers, is_open = {}, layers + 1, _opens_a_layer(flow, added, inside)
        passed.add(node)
        if node in found and layers and moving.isdisjoint(_data(flow, node, found[node])):
            if works and flow.order[node] < works[-1]:
                kept[node] = found[node]
            elif is_open:
                waiting[node] = found[node]
    return kept


def _makes_a_layer(flow: Dataflow, node: fx.Node) -> bool:
    """Return whether `node` mixes tokens or chooses experts, as no head does that works on each row by itself."""
    return is_choice(node) or _mixes(flow, node)


def _mixes(flow: Dataflow, node: fx.Node) -> bool:
    """Return whether tokens meet in `node`: an attention, a scan, or a product of two activations."""
    if ops.is_attention(node) or ops.is_scan(node):
        return True
    return ops.is_matmul(node) and flow.constant.isdisjoint(node.all_input_nodes)


def _opens_a_layer(flow: Dataflow, added: Sequence[fx.Node], inside: Predicate) -> bool:
    """Return whether the term `added` mixes tokens: a feed-forward follows, whatever stands in between.

    Nodes that are `inside` depend on the stream, and are no residual values in front of the term.
    """
    term = list(walk_back(added, lambda one: not inside(one), flow.uses.__getitem__))
    if any(ops.is_attention(node) or ops.is_scan(node) for node in term):
        return True
    return not any(map(is_choice, term)) and any(_mixes(flow, node) for node in term)


def _data(flow: Dataflow, node: fx.Node, rows: fx.Node) -> list[fx.Node]:
    """Return the tensors that decide which rows `node` takes, also through numbers; a size is no data."""

    def is_tensor(one: fx.Node) -> bool:
        return one is not node and ops.tensor(one) is not None

    def inputs(one: fx.Node) -> list[fx.Node]:
        if ops.op_name(one) in ops.SIZES and one is not node:
            return []
        return [arg for arg in one.all_input_nodes if arg is not rows]

    border: dict[fx.Node, None] = {}
    for _ in walk_back([node], is_tensor, inputs, border):
        pass
    return list(border)
