# SPDX-License-Identifier: Apache-2.0
"""Sums of a graph, and the one among them that is the residual stream.

In:    a normalised graph.
Out:   for each node the summands that it is made of; the tree of the sum that is the residual stream.
Never: changes the graph; for a candidate, looks at more of it than lies between its first and its last node.

Algorithm: a node is a sum of two, a linear image of one, or neither (`operands`). The residual stream is the largest
sum in which a summand is computed, with weights, from a smaller part of the same sum (`find_root`).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from types import MappingProxyType

from torch import fx

from farskip_compile._compat import is_module_state
from farskip_compile.passes.graph import comms, effects, ops
from farskip_compile.passes.graph.declared import declared
from farskip_compile.passes.graph.walk import spread
from farskip_compile.passes.normalize.accumulations import addends
from farskip_compile.passes.normalize.single_assignment import mutation_edges
from farskip_compile.passes.residual.carried import carried

SKIP_AN_INPUT = ops.LIKE | {"view_as", "added_alone"}
Summands = dict[fx.Node, tuple[fx.Node, ...]]
UsesByNode = dict[fx.Node, tuple[fx.Node, ...]]


@dataclass(frozen=True)
class Dataflow:
    """Dependences of a graph, gathered once."""

    nodes: Sequence[fx.Node]
    order: Mapping[fx.Node, int]
    """Position of each node in the graph."""
    after: Mapping[fx.Node, tuple[fx.Node, ...]]
    """Writes that a node depends on through memory (`mutation_edges`)."""
    uses: UsesByNode
    """The nodes whose data a node depends on: memory writes included, shape-only arguments excluded."""
    constant: frozenset[fx.Node]
    """Nodes that depend on parameters, buffers and literals only, not on an input of the call."""
    addends: Mapping[fx.Node, fx.Node] = field(default_factory=dict)
    """What accumulations add to their base (`normalize.accumulations`)."""

    def has_weight(self, node: fx.Node) -> bool:
        """Whether `node` multiplies by a weight."""
        return ops.multiplies(node) and any(arg in self.constant for arg in self.uses[node])


def read_dataflow(graph: fx.Graph) -> Dataflow:
    """Gather the dependences of `graph` in one walk."""
    nodes = list(graph.nodes)
    after = mutation_edges(graph)
    uses: UsesByNode = {}
    constant: set[fx.Node] = set()
    for node in nodes:
        inputs = tuple(node.all_input_nodes)
        name = ops.op_name(node)
        if name in SKIP_AN_INPUT:
            inputs = _data_of(node, name, inputs)
        is_state = node.op == "get_attr" or (node.op == "placeholder" and is_module_state(node))
        is_image = bool(inputs) and constant.issuperset(inputs) and not effects.is_random(node)
        # a buffer that was written to, such as a cache, holds what was written
        if (is_state or is_image) and node not in after:
            constant.add(node)
        uses[node] = inputs + after[node] if node in after else inputs
    order = {node: index for index, node in enumerate(nodes)}
    return Dataflow(nodes, order, after, uses, frozenset(constant), addends(graph))


def _data_of(node: fx.Node, name: str, inputs: tuple[fx.Node, ...]) -> tuple[fx.Node, ...]:
    """The inputs whose data are read, not only their shapes; of a mark all but the base."""
    if name == "view_as":
        return inputs[:1]
    return () if name in ops.LIKE else tuple(arg for arg in inputs if arg is not node.args[0])


def summands_of(
    flow: Dataflow, whole: Container[fx.Node] = (), row_maps: Mapping[fx.Node, fx.Node] = MappingProxyType({})
) -> Summands:
    """Map each node to its summands: none for a node in `whole`, the node whose rows are taken for a row map."""
    below = {node: () if node in whole else operands(node, flow) for node in flow.nodes}
    below.update((node, (rows,)) for node, rows in row_maps.items())
    return below


def operands(node: fx.Node, flow: Dataflow) -> tuple[fx.Node, ...]:
    """The summands of `node`: two of a sum, one of a linear unary op or of a shift, none otherwise."""
    name = ops.op_name(node)
    if node in flow.addends:
        return node.args[0], flow.addends[node]  # type: ignore[return-value]
    if not ops.may_be_linear(name) and not ("::" in name and comms.is_linear_collective(node)):
        return ()
    if ops.is_sum(node):
        return _without_zeros(*node.args)  # type: ignore[arg-type]
    return _operand(node, name, flow) if ops.is_floating(node) else ()


def _without_zeros(left: fx.Node, right: fx.Node) -> tuple[fx.Node, ...]:
    if ops.is_zeros(left):
        return (right,)
    return (left,) if ops.is_zeros(right) else (left, right)


def _operand(node: fx.Node, name: str, flow: Dataflow) -> tuple[fx.Node, ...]:
    """What `node`, which is no sum, is a linear image of."""
    if name in ops.PRODUCTS and len(node.args) == 2:
        return _scaled(node, flow)
    if name == "add" and len(node.args) == 2:
        return _shifted(node, flow)
    first = node.args[0] if node.args else None
    return (first,) if isinstance(first, fx.Node) and _is_linear_unary(node, name) else ()


def _is_linear_unary(node: fx.Node, name: str) -> bool:
    if name in ops.SHAPE_OPS or name in ops.CAST_OPS or name == "neg":
        return True
    return comms.is_linear_collective(node) or comms.is_wait(node) or ops.is_inactive_dropout(node)


def _scaled(node: fx.Node, flow: Dataflow) -> tuple[fx.Node, ...]:
    """The summand that is multiplied by a number, a constant tensor, or a gate that was computed before it."""
    left, right = node.args
    pairs = [(left, right)] if ops.op_name(node) != "mul" else [(left, right), (right, left)]
    for value, factor in pairs:
        known = not isinstance(factor, fx.Node) or factor in flow.constant or ops.tensor(factor) is None
        if known and _has_shape_of(value, node):
            return (value,)  # type: ignore[return-value]
    for value, gate in pairs:
        # a gate computed before the value can't depend on it, so the product is linear in the value alone
        earlier = isinstance(gate, fx.Node) and isinstance(value, fx.Node) and flow.order[gate] < flow.order[value]
        if earlier and value not in flow.constant and _has_shape_of(value, node):
            return (value,)  # type: ignore[return-value]
    return ()


def _shifted(node: fx.Node, flow: Dataflow) -> tuple[fx.Node, ...]:
    """The summand beside a number or a constant of another shape, which belongs to the stream or to the term itself."""
    for value, shift in (node.args, node.args[::-1]):
        known = isinstance(shift, int | float) or (isinstance(shift, fx.Node) and shift in flow.constant)
        if known and _has_shape_of(value, node) and value not in flow.constant:
            return (value,)  # type: ignore[return-value]
    return ()


def _has_shape_of(value: object, node: fx.Node) -> bool:
    """Whether `value` is a tensor node of the shape of `node`."""
    if not isinstance(value, fx.Node):
        return False
    tensor, result = ops.tensor(value), ops.tensor(node)
    return tensor is not None and result is not None and ops.same_shape(tensor, result)


def gates(node: fx.Node, below: Summands) -> list[fx.Node]:
    """What a product that counts as a linear image of one factor multiplies it by."""
    if len(below[node]) != 1 or ops.op_name(node) not in ops.PRODUCTS:
        return []
    return [arg for arg in node.all_input_nodes if arg is not below[node][0]]


def parts_of_sums(nodes: Sequence[fx.Node], below: Summands) -> set[fx.Node]:
    """The nodes that are summed in another one, directly or through linear ops."""
    parts: set[fx.Node] = set()
    for node in reversed(nodes):
        if len(below[node]) == 2 or node in parts:
            parts.update(below[node])
    return parts


def sizes_of(nodes: Sequence[fx.Node], below: Summands) -> dict[fx.Node, int]:
    """How many sums are below each node, itself included."""
    size: dict[fx.Node, int] = {}
    for node in nodes:
        summands = below[node]
        size[node] = sum([size[arg] for arg in summands]) + (len(summands) == 2) if summands else 0
    return size


@dataclass(frozen=True, eq=False)
class SumTree:
    """All that is summed in one node."""

    root: fx.Node
    inner: Mapping[fx.Node, None]
    """Sums and linear ops between the root and the leaves."""
    images: Mapping[fx.Node, list[fx.Node]]
    """For each leaf: it and what it is a linear image of, down to the node that identifies the term."""
    depth: Mapping[fx.Node, int]
    """Distance from the root."""
    twice: fx.Node | None
    """A node that is added twice, if there is one."""

    def parts(self) -> list[fx.Node]:
        """All nodes of the tree, and what its leaves are linear images of."""
        return [*self.inner, *(node for path in self.images.values() for node in path)]


def flatten(root: fx.Node, below: Summands, size: Mapping[fx.Node, int]) -> SumTree:
    """The tree of the sum `root`. A linear op without a sum below it is a leaf itself."""
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
    return SumTree(root, inner, {leaf: images_of(leaf, below, inner) for leaf in leaves}, depth, twice)


def images_of(leaf: fx.Node, below: Summands, tree: Container[fx.Node] = ()) -> list[fx.Node]:
    """`leaf` and what it is a linear image of, down to a node that is not an image, or is one of a node in `tree`."""
    images = [leaf]
    while len(below[images[-1]]) == 1 and below[images[-1]][0] not in tree:
        images.append(below[images[-1]][0])
    return images


def find_root(flow: Dataflow, below: Summands, size: Mapping[fx.Node, int]) -> SumTree | None:
    """The largest sum in which a summand is computed, with weights, from a smaller part of the sum.

    A loss, a rotation or the sum of many experts before a norm has no summand that depends on another one; the state
    of a recurrence over chunks of tokens does, but without weights. Either can be larger than the stream. So can what
    a sub-block reads that mixes two residual values; but that holds the older one twice. If all sums that depend on
    themselves are such, the largest of these is given. A tower beside the stack is a sum with weights, too, and may be
    the larger one: a sum with routed experts goes before one without.
    """
    without_choice: SumTree | None = None
    second_best: SumTree | None = None
    chooses = any(map(is_choice, flow.nodes))
    added = parts_of_sums(flow.nodes, below)
    tops = [node for node in flow.nodes if len(below[node]) == 2 and node not in added]
    for root in sorted(tops, key=lambda node: -size[node]):
        tree = flatten(root, below, size)
        parts = tree.parts()
        cores = {path[-1] for path in tree.images.values()}
        span = flow.nodes[min(flow.order[node] for node in parts) : flow.order[root] + 1]
        depends = depends_on(flow, parts, span)
        if cores.isdisjoint(depends):
            continue
        weighted = spread((node for node in span if node in depends), flow.has_weight, flow.uses.__getitem__)
        if tree.twice is not None or cores.isdisjoint(weighted):
            second_best = second_best or tree
        elif not chooses or not cores.isdisjoint(spread(span, is_choice, flow.uses.__getitem__)):
            return tree
        else:
            without_choice = without_choice or tree
    return without_choice or second_best


def is_choice(node: fx.Node) -> bool:
    """What routes: a selection, or an exchange of tokens."""
    return ops.is_selection(node) or comms.is_all_to_all(node) or declared(node) == "exchange"


def depends_on(flow: Dataflow, sources: Iterable[fx.Node], span: Iterable[fx.Node] | None = None) -> set[fx.Node]:
    """Nodes (of `span`, in graph order) that depend on any of `sources` (members only if they depend on another)."""
    reached, uses = set(sources), flow.uses
    found: set[fx.Node] = set()
    for node in flow.nodes if span is None else span:
        if not reached.isdisjoint(uses[node]):
            found.add(node)
            reached.add(node)
    return found


def choose_base(flow: Dataflow, tree: SumTree, depends: Set[fx.Node]) -> fx.Node | None:
    """Return the leaf that the stream begins with: the deepest one that depends on no other part of the sum.

    A parameter, such as learned positions, is chosen only if there is no other. In a part of a model it is marked.
    `depends` holds what depends on a part of the sum.
    """
    for leaf, images in tree.images.items():
        if (known := carried(images)) is not None and not known.places and known.is_base:
            return leaf
    return max(
        (leaf for leaf, images in tree.images.items() if images[-1] not in depends),
        key=lambda leaf: (leaf not in flow.constant, tree.depth[leaf], -flow.order[leaf]),
        default=None,
    )
