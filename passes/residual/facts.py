# SPDX-License-Identifier: Apache-2.0
"""What is known of each node before any region is named: six facts, by dataflow alone.

In:    a graph and its `Stream`.
Out:   `KindFacts`.
Never: reads module names, class names or parameter names.

Each fact is spread forward from where it begins; all but the first stop at residual values:
    weight    data comes from parameters only, or is a row of a parameter picked by an index;
    selected  depends on a selection by value (top-k, argmax, sort);
    scored    elementwise image of a product of two activations that no selection has touched;
    met       the same of any two activations: a router may have chosen the weights of one;
    projected has passed a product with a weight;
    worked    has passed an attention (a fused operator, a scan, a product of two activations), or the weights of an
              expert that was selected for it.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from torch import fx

from farskip_compile.passes.graph import ops
from farskip_compile.passes.graph.walk import spread
from farskip_compile.passes.residual.stream import Stream


@dataclass(frozen=True)
class KindFacts:
    """The six facts, as sets of nodes."""

    stream: Stream
    weight: Set[fx.Node]
    selected: Set[fx.Node]
    scored: Set[fx.Node]
    met: Set[fx.Node]
    projected: Set[fx.Node]
    worked: Set[fx.Node]


def gather_facts(stream: Stream, graph: fx.Graph) -> KindFacts:
    """Collect the facts about `graph`."""
    cut = set(stream.tree) | set(stream.values)
    inner = cut - set(stream.leaves[1:])
    calls = [node for node in graph.nodes if node.op in ("call_function", "call_method") and node not in inner]
    sources = {node: [arg for arg in stream.inputs(node) if arg not in cut] for node in calls}

    selected = spread(calls, ops.is_selection, sources.__getitem__)
    picked = {node: data for node in calls if (data := picked_data(node)) is not None}
    constant = stream.flow.constant
    # what is read of a buffer that was written to, such as a cache, is what was written
    weight = constant | spread(
        picked, lambda node: picked[node] in constant and node not in stream.flow.after, lambda node: [picked[node]]
    )
    calls = [node for node in calls if picked.get(node) not in weight]  # a picked weight is not an activation

    excluded = weight | selected
    products = {node for node in calls if ops.is_matmul(node)}
    scores = {node for node in products if _activations(stream, node, excluded) >= 2}

    def until_product(node: fx.Node) -> Sequence[fx.Node]:
        return () if node in products else sources[node]

    scored = spread(calls, scores.__contains__, until_product) if scores else scores
    meets = {node for node in products if _activations(stream, node, weight) >= 2}
    met = spread(calls, meets.__contains__, until_product) if meets else meets

    def is_projection(node: fx.Node) -> bool:
        if node not in products or node in scored or node not in stream.depends:
            return False
        return not weight.isdisjoint(stream.inputs(node))

    projected = spread(calls, is_projection, sources.__getitem__)

    def works(node: fx.Node) -> bool:
        if ops.is_attention(node) or ops.is_scan(node) or node in scores:
            return True
        return node in products and is_projection(node) and not selected.isdisjoint(stream.inputs(node))

    return KindFacts(stream, weight, selected, scored, met, projected, spread(calls, works, sources.__getitem__))


def is_result(facts: KindFacts, node: fx.Node) -> bool:
    """Whether an attention or routed experts have computed `node`."""
    return node in facts.worked and ops.is_floating(node)


def picked_data(node: fx.Node) -> fx.Node | None:
    """What `node` picks elements of, or gives back in another shape or dtype."""
    name = ops.op_name(node)
    if name not in ops.INDEX_OPS and name not in ops.SHAPE_OPS and name not in ops.CAST_OPS:
        return None
    data = [arg if isinstance(arg, fx.Node) else None for arg in node.args[:2]]
    table = data[1] if name == "embedding" and len(data) == 2 else None
    return table or (data[0] if data else None)


def _activations(stream: Stream, node: fx.Node, excluded: Set[fx.Node]) -> int:
    """How many different inputs of `node` are activations, and not `excluded`."""
    return sum(
        (arg in stream.depends or stream.is_residual(arg)) and arg not in excluded and ops.is_floating(arg)
        for arg in ops.factors(node)
    )
