"""Sums of a graph, and the one among them that is the residual stream.

In:    a normalised graph.
Out:   for each node the summands that it is made of; the root of the residual stream; the tree under a root.
Never: changes the graph; walks more of it for a candidate than lies between its first and its last node.

Algorithm: a node is a sum of two, a linear image of one, or neither (`operands`). The root is the largest sum of which
a summand is computed, with weights, from a smaller part of the same sum.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from farskip_compile._compat import is_module_state
from farskip_compile.passes.graph import effects, ops
from farskip_compile.passes.normalize.single_assignment import mutation_edges

Summands = dict[fx.Node, tuple[fx.Node, ...]]
Uses = dict[fx.Node, tuple[fx.Node, ...]]


@dataclass(frozen=True)
class Dataflow:
    """Dependences of a graph, gathered once."""

    nodes: Sequence[fx.Node]
    order: Mapping[fx.Node, int]
    """Position of each node in the graph."""
    after: Mapping[fx.Node, tuple[fx.Node, ...]]
    """Writes that a node depends on through memory (`mutation_edges`)."""
    uses: Uses
    """The nodes whose data a node depends on: memory writes included, shape-only arguments excluded."""
    constant: frozenset[fx.Node]
    """Nodes that depend on parameters, buffers and literals only, not on an input of the call."""


def read_dataflow(graph: fx.Graph) -> Dataflow:
    """Gather the dependences of `graph` in one walk."""
    nodes = list(graph.nodes)
    after = mutation_edges(graph)
    uses: Uses = {}
    constant: set[fx.Node] = set()
    for node in nodes:
        inputs = tuple(node.all_input_nodes)
        if inputs and ops.op_name(node) == "view_as":
            inputs = inputs[:1]
        is_state = node.op == "get_attr" or (node.op == "placeholder" and is_module_state(node))
        if is_state or (inputs and all(arg in constant for arg in inputs) and not effects.is_random(node)):
            constant.add(node)
        uses[node] = inputs + after[node] if node in after else inputs
    return Dataflow(nodes, {node: index for index, node in enumerate(nodes)}, after, uses, frozenset(constant))


def operands(node: fx.Node, flow: Dataflow) -> tuple[fx.Node, ...]:
    """The summands of `node`: two of a sum, one of a linear unary op or of a shift, none otherwise."""
    name = ops.op_name(node)
    if not ops.may_be_linear(name):
        return ()
    if ops.is_sum(node):
        return node.args[0], node.args[1]  # type: ignore[return-value]
    if not ops.is_floating(node):
        return ()
    if name in ops.PRODUCTS and len(node.args) == 2:
        return _scaled(node, flow)
    if name == "add" and len(node.args) == 2:
        return _shifted(node, flow)
    first = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    if first is None:
        return ()
    if name in ops.SHAPE_OPS or name in ops.CAST_OPS or name == "neg":
        return (first,)
    if ops.is_linear_collective(node) or ops.is_wait(node) or ops.is_inactive_dropout(node):
        return (first,)
    return ()


def _scaled(node: fx.Node, flow: Dataflow) -> tuple[fx.Node, ...]:
    """The summand behind a multiplication by a number, a constant tensor, or a gate that was computed before it."""
    left, right = node.args
    candidates = [(left, right)] if ops.op_name(node) != "mul" else [(left, right), (right, left)]
    for value, factor in candidates:
        if not isinstance(value, fx.Node) or ops.tensor(value) is None:
            continue
        if not ops.same_shape(ops.tensor(value), ops.tensor(node)):  # type: ignore[arg-type]
            continue
        if not isinstance(factor, fx.Node) or ops.tensor(factor) is None or factor in flow.constant:
            return (value,)
    for value, factor in candidates:
        if not isinstance(value, fx.Node) or not isinstance(factor, fx.Node) or flow.order[factor] >= flow.order[value]:
            continue
        # a gate computed before the value can't depend on it, so the product is linear in the value alone
        if value not in flow.constant and ops.same_shape(ops.tensor(value), ops.tensor(node)):  # type: ignore[arg-type]
            return (value,)
    return ()


def gates(node: fx.Node, below: Summands) -> list[fx.Node]:
    """What a product that counts as a linear image of one factor multiplies it by."""
    if len(below[node]) != 1 or ops.op_name(node) not in ops.PRODUCTS:
        return []
    return [arg for arg in node.all_input_nodes if arg is not below[node][0]]


def _shifted(node: fx.Node, flow: Dataflow) -> tuple[fx.Node, ...]:
    """The summand beside a constant of another shape: a vector that belongs to the stream or to the term itself."""
    for value, shift in (node.args, node.args[::-1]):
        if not isinstance(value, fx.Node) or not isinstance(shift, fx.Node) or shift not in flow.constant:
            continue
        if value not in flow.constant and ops.same_shape(ops.tensor(value), ops.tensor(node)):  # type: ignore[arg-type]
            return (value,)
    return ()


def find_root(flow: Dataflow, below: Summands, size: Mapping[fx.Node, int]) -> fx.Node | None:
    """The largest sum in which a summand is computed, with weights, from a smaller part of the sum.

    A loss, a rotation or the sum of many experts behind a norm has no summand that depends on another one; the state
    of a recurrence over chunks of tokens does, but without weights. Either can be larger than the stream. So can what
    a sub-block reads that mixes two residual values; but that holds the older one twice.
    """
    covered: set[fx.Node] = set()
    for node in reversed(flow.nodes):
        if len(below[node]) == 2 or node in covered:
            covered.update(below[node])
    second_best: fx.Node | None = None
    sums = [node for node in flow.nodes if len(below[node]) == 2 and node not in covered]
    for root in sorted(sums, key=lambda node: -size[node]):
        tree, leaves, _, twice = flatten(root, below, size)
        images = [images_of(leaf, below, tree) for leaf in leaves]
        parts = [*tree, *(node for path in images for node in path)]
        span = flow.nodes[min(flow.order[node] for node in parts) : flow.order[root] + 1]
        depends = depends_on(flow, parts, span)
        if not any(path[-1] in depends for path in images):
            continue
        weighted: set[fx.Node] = set()
        for node in span:
            inputs = flow.uses[node]
            has_weight = ops.multiplies(node) and any(arg in flow.constant for arg in inputs)
            if node in depends and (has_weight or any(arg in weighted for arg in inputs)):
                weighted.add(node)
        if twice is None and any(path[-1] in weighted for path in images):
            return root
        second_best = second_best or root
    return second_best


def images_of(leaf: fx.Node, below: Summands, tree: Container[fx.Node]) -> list[fx.Node]:
    """`leaf` and what it is a linear image of, down to the node that identifies the term."""
    images = [leaf]
    while len(below[images[-1]]) == 1 and below[images[-1]][0] not in tree:
        images.append(below[images[-1]][0])
    return images


def flatten(
    root: fx.Node, below: Summands, size: Mapping[fx.Node, int]
) -> tuple[dict[fx.Node, None], list[fx.Node], dict[fx.Node, int], fx.Node | None]:
    """Inner nodes, leaves and depths of the sum under `root`, and a node that is reached twice, if there is one.

    A linear op without a sum below it is a leaf itself.
    """
    inner: dict[fx.Node, None] = {}
    leaves: list[fx.Node] = []
    depth = {root: 0}
    twice: fx.Node | None = None
    stack = [root]
    while stack:
        node = stack.pop()
        if size[node] == 0:
            leaves.append(node)
            continue
        inner[node] = None
        for arg in reversed(below[node]):
            if arg in depth:
                twice = arg
                continue
            depth[arg] = depth[node] + 1
            stack.append(arg)
    return inner, leaves, depth, twice


def depends_on(flow: Dataflow, sources: Iterable[fx.Node], span: Iterable[fx.Node] | None = None) -> set[fx.Node]:
    """Nodes that depend on any of `sources` (which are members only if they depend on another one).

    Args:
        flow: the graph.
        sources: where dependence begins.
        span: nodes to look at, in graph order; None for all.
    """
    reached = set(sources)
    found: set[fx.Node] = set()
    for node in flow.nodes if span is None else span:
        if not reached.isdisjoint(flow.uses[node]):
            found.add(node)
            reached.add(node)
    return found
