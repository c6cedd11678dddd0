# SPDX-License-Identifier: Apache-2.0
"""Find routed experts outside of the stack, whatever mixed rows before them: in an encoder, a tower, a second decoder.

Contract: given nodes of a graph, and the values at which the stack begins them, if any; shares no code with detection.
Rows are read anew: they begin at each product with weights whose rows nobody could follow, so that a router behind an
attention is seen as one before it.

What experts made is rows that a decision was made about, after weights had made that decision, and that weights or
gates of the decision were applied to; and it is put together with a value about which no decision was made: the stream
that the experts read. What prunes or picks tokens goes on with the picked rows alone, an index of windows is made
without weights, a codebook is added as it is: none of these is taken for experts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set

from torch import fx

from farskip_compile._compat import is_module_state, same_dim
from farskip_compile.passes.graph import ops
from farskip_compile.passes.graph.walk import spread, walk_back
from farskip_compile.verify.account.layers import PRODUCTS
from farskip_compile.verify.account.weights import begins_rows, has_weights
from farskip_compile.verify.rows.read import begin, read_rows
from farskip_compile.verify.rows.rules import is_contraction, is_unknown
from farskip_compile.verify.rows.state import RowDependence, RowFacts


def find_experts(graph: fx.Graph, outside: Sequence[fx.Node], values: Collection[fx.Node]) -> fx.Node | None:
    """Return the first node of `outside` that adds what experts made to the stream that they read.

    Args:
        graph: the graph.
        outside: its nodes outside of all sub-blocks, in the order of the graph.
        values: the residual values.
    """
    held = frozenset(values)
    weighted = spread(outside, lambda node: has_weights(node) or not held.isdisjoint(node.all_input_nodes))
    decisions = {node for node in weighted if ops.tensor(node) is not None and not ops.is_floating(node)}
    chosen = spread(outside, decisions.__contains__)
    if not any(ops.is_floating(node) for node in chosen):
        return None
    rows = _rows_anew(graph, values, chosen)
    worked = spread(outside, lambda node: rows[node].decided and _works(node))
    made = {node for node in worked & weighted & chosen if ops.is_floating(node)}
    order = {node: place for place, node in enumerate(graph.nodes)}
    return next((node for node in outside if _puts_together(node, made, rows, order)), None)


def _rows_anew(graph: fx.Graph, values: Collection[fx.Node], chosen: Set[fx.Node]) -> Mapping[fx.Node, RowFacts]:
    """Return the rows of all nodes, which begin at `values`, at inputs, and at products and sums whose rows are lost.

    What was `chosen` by a decision is no input, although it may be picked from a table, too.
    """
    activations = spread(graph.nodes, lambda node: node.op == "placeholder" and not is_module_state(node))
    known: dict[fx.Node, RowFacts] = {}

    def again(node: fx.Node, found: RowFacts) -> RowFacts:
        lost = found.state >= RowDependence.MIXED or (found.state is RowDependence.FREE and node in activations)
        if lost and is_contraction(node):
            decided = any(ops.is_floating(arg) and _is_chosen(known.get(arg)) for arg in node.all_input_nodes)
            if decided or has_weights(node):
                found = begin([node]).get(node, found)._replace(decided=decided)
        elif (
            found.state is RowDependence.MIXED
            and ops.is_sum(node)
            and not any(known[arg].decided for arg in node.all_input_nodes)
        ):
            found = begin([node])[node]
        known[node] = found
        return found

    inputs = filter(begins_rows, graph.nodes)
    begins = {**begin(node for node in inputs if node not in chosen), **begin(values)}
    return read_rows(graph.nodes, begins, again)


def _is_chosen(found: RowFacts | None) -> bool:
    """Return whether a decision picked a value among weights."""
    return found is not None and found.state is RowDependence.DECISION


def _works(node: fx.Node) -> bool:
    """Return whether `node` applies weights, gates or masks, or writes rows to their places."""
    return is_contraction(node) or ops.op_name(node) in PRODUCTS or ops.op_name(node).rstrip("_") in WRITES


def _puts_together(
    node: fx.Node, made: Set[fx.Node], rows: Mapping[fx.Node, RowFacts], order: Mapping[fx.Node, int]
) -> bool:
    """Return whether `node` adds a value that experts `made` to one that no decision was made about."""
    inputs = node.all_input_nodes
    if made.isdisjoint(inputs) or ops.op_name(node) in PRODUCTS or (is_contraction(node) and not is_unknown(node)):
        return False
    experts = [arg for arg in inputs if arg in made and _is_decided(rows[arg])]
    streams = [arg for arg in inputs if rows[arg].state >= RowDependence.ROWS and not _is_decided(rows[arg])]
    return any(_fit(a, b) and not _depends(b, a, order) for a in experts for b in streams)


def _is_decided(found: RowFacts) -> bool:
    return found.decided and RowDependence.ROWS <= found.state <= RowDependence.MOVED


def _fit(a: fx.Node, b: fx.Node) -> bool:
    """Return whether both are floating, with rows as wide as each other's."""
    left, right = ops.tensor(a), ops.tensor(b)
    if left is None or right is None or not ops.is_floating(a) or not ops.is_floating(b):
        return False
    return min(left.dim(), right.dim()) >= 2 and same_dim(left.shape[-1], right.shape[-1])


def _depends(node: fx.Node, earlier: fx.Node, order: Mapping[fx.Node, int]) -> bool:
    return any(one is earlier for one in walk_back([node], lambda one: order[one] < order[earlier]))


WRITES = frozenset(
    [
        *("scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy", "index_put", "masked_scatter"),
        *("setitem", "put_sum", "added_alone", "torchtitan::deterministic_scatter_add"),
    ]
)
