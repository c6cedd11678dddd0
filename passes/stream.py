"""The residual stream as a sum tree: which values are residual values, and which terms each of them holds.

In:    a normalised graph (single assignment, checkpoints opened) with fake values.
Out:   `Stream`: the leaves of the final sum (the terms) and every residual value with its set of terms; or None if
       the graph has no such sum.
Never: changes the graph; looks at names, classes or module paths.

Algorithm (linear in the graph):
1. size(node) = number of sums below it, through linear unary ops that keep tokens apart. The largest in which one
   summand is computed from others with weights is the final hidden state, the root.
2. Flatten the tree under the root. A leaf that depends on no other part of the tree and lies deepest is the base
   (the embedding); the path from the root to it is the main chain. The other leaves are what the sub-blocks added.
3. A residual value is a node of the main chain, or any other sum (or linear image) of tree nodes that holds the base:
   such as the stream without the routed experts in a graph that is in FarSkip form already.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Set
from dataclasses import dataclass, field

from torch import fx

from farskip_compile._compat import is_module_state
from farskip_compile.errors import NotASumError, UnsupportedPatternError
from farskip_compile.passes import ops
from farskip_compile.passes.single_assignment import mutation_edges
from farskip_compile.passes.termset import TermSet


@dataclass
class Stream:
    """The sum tree of the residual stream of one graph."""

    root: fx.Node
    base: fx.Node
    leaves: list[fx.Node]
    """The terms; the position in this list is the term's index."""
    cores: list[fx.Node]
    """For each leaf, the node below its linear unary ops: its identity, whatever collective or cast it is behind."""
    joins: list[int]
    """For each leaf, the position on the main chain at which it is added."""
    values: dict[fx.Node, TermSet]
    """Residual values: nodes that hold the base, with the terms they are the sum of."""
    tree: dict[fx.Node, TermSet]
    """All inner nodes of the sum (also partial sums that do not hold the base)."""
    partial: dict[fx.Node, TermSet]
    """Sums and linear images of tree nodes beside the tree, residual values among them."""
    below: dict[fx.Node, tuple[fx.Node, ...]]
    """The summands of each node of the graph: two of a sum, one of a linear unary op, none otherwise."""
    parents: dict[fx.Node, fx.Node]
    """The tree node that a tree node is a summand of."""
    order: dict[fx.Node, int]
    """Position of each node in the graph."""
    after: dict[fx.Node, tuple[fx.Node, ...]]
    """Writes that a node depends on through memory (`mutation_edges`)."""
    depends: set[fx.Node] = field(default_factory=set)
    """Nodes that depend on a residual value."""

    def inputs(self, node: fx.Node) -> list[fx.Node]:
        """The nodes whose data `node` depends on, memory writes included, shape-only arguments excluded."""
        if ops.op_name(node) == "view_as":
            node_inputs = [arg for arg in node.args[:1] if isinstance(arg, fx.Node)]
        else:
            node_inputs = node.all_input_nodes
        extra = self.after.get(node)
        return [*node_inputs, *extra] if extra else node_inputs


def operands(node: fx.Node, constant: set[fx.Node], order: dict[fx.Node, int]) -> tuple[fx.Node, ...]:
    """The summands of `node`: two of a sum, one of a linear unary op, none otherwise."""
    if ops.is_sum(node):
        return node.args[0], node.args[1]  # type: ignore[return-value]
    if not ops.is_floating(node):
        return ()
    name = ops.op_name(node)
    if name in ("mul", "div", "truediv") and len(node.args) == 2:
        return _scaled(node, constant, order)
    first = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    if first is None:
        return ()
    if name in ops.SHAPE_OPS or name in ops.CAST_OPS or name == "neg":
        return (first,)
    if ops.is_linear_collective(node) or ops.is_wait(node) or ops.is_inactive_dropout(node):
        return (first,)
    return ()


def _scaled(node: fx.Node, constant: set[fx.Node], order: dict[fx.Node, int]) -> tuple[fx.Node, ...]:
    """The summand behind a multiplication by a number, a constant tensor, or a gate that was computed before it."""
    left, right = node.args
    candidates = [(left, right)] if ops.op_name(node) != "mul" else [(left, right), (right, left)]
    for value, factor in candidates:
        if not isinstance(value, fx.Node) or ops.tensor(value) is None:
            continue
        if not ops.same_shape(ops.tensor(value), ops.tensor(node)):  # type: ignore[arg-type]
            continue
        if not isinstance(factor, fx.Node) or ops.tensor(factor) is None or factor in constant:
            return (value,)
    for value, factor in candidates:
        if not isinstance(value, fx.Node) or not isinstance(factor, fx.Node) or order[factor] > order[value]:
            continue
        # a gate computed before the value can't depend on it, so the product is linear in the value
        if value not in constant and ops.same_shape(ops.tensor(value), ops.tensor(node)):  # type: ignore[arg-type]
            return (value,)
    return ()


def constants(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that depend on parameters, buffers and literals only, not on an input of the call."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        is_state = node.op == "get_attr" or (node.op == "placeholder" and is_module_state(node))
        if is_state or (inputs and all(arg in found for arg in inputs) and not ops.is_random(node)):
            found.add(node)
    return found


def read_stream(graph: fx.Graph, whole: Set[fx.Node] = frozenset()) -> Stream | None:
    """Find the residual stream of `graph`; None if it holds no sum that a sub-block could read from.

    Args:
        graph: a normalised graph.
        whole: sums that are to be taken as one term, because their summands read each other.

    Raises:
        NotASumError: a value is added twice, so the sum has no table.
        UnsupportedPatternError: a part of the stream is written in place in a way that has no out-of-place form.
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    constant = constants(graph)
    below = {node: () if node in whole else operands(node, constant, order) for node in graph.nodes}
    size: dict[fx.Node, int] = {}
    for node in graph.nodes:
        size[node] = sum(size[arg] for arg in below[node]) + (len(below[node]) == 2)
    after = mutation_edges(graph)
    root = _find_root(graph, below, size, constant, after)
    if root is None:
        return None
    tree, tree_leaves, depth, twice = _flatten(root, below, size)
    image_of = {leaf: _images(leaf, below, tree) for leaf in tree_leaves}
    depends = _depends_on(graph, [*tree, *(node for images in image_of.values() for node in images)], after)
    if twice is not None:
        raise NotASumError(
            "a value enters the residual sum twice, so no table can say which reader gets which copy",
            way_out="write the sum with a multiplication by a number instead",
            where=ops.where(twice),
        )
    base = max(
        (leaf for leaf in tree_leaves if image_of[leaf][-1] not in depends),
        key=lambda leaf: (depth[leaf], -order[leaf]),
        default=None,
    )
    if base is None:
        return None
    parents = {arg: node for node in (*tree, *image_of[base]) for arg in below[node]}
    base = image_of[base][-1]  # the first sub-block may read it without the multiplier that its skip has
    chain = [base]
    while chain[-1] is not root:
        chain.append(parents[chain[-1]])
    leaves, joins, sets = _number(chain, below, size)
    values = {node: sets[node] for node in chain}
    images = [_images(leaf, below, sets) for leaf in leaves]
    cores = [image[-1] for image in images]
    if len(set(cores)) < len(cores):
        again = next(leaf for index, leaf in enumerate(leaves) if cores[index] in cores[:index])
        raise NotASumError(
            "one value enters the residual sum as two terms, with different multipliers",
            way_out="add it once, with the sum of the multipliers",
            where=ops.where(again),
        )
    stream = Stream(root, base, leaves, cores, joins, values, sets, {}, below, parents, order, after)
    _add_side_sums(stream, graph, images)
    stream.depends = _depends_on(graph, stream.values, after)
    _refuse_written_in_place(stream, graph)
    return stream


def _find_root(
    graph: fx.Graph,
    below: dict[fx.Node, tuple[fx.Node, ...]],
    size: dict[fx.Node, int],
    constant: set[fx.Node],
    after: dict[fx.Node, tuple[fx.Node, ...]],
) -> fx.Node | None:
    """The largest sum in which a summand is computed, with weights, from a smaller part of the sum.

    A loss, a rotation or the sum of many experts behind a norm has no summand that depends on another one; the state
    of a recurrence over chunks of tokens does, but without weights. Either can be larger than the stream. So can what
    a sub-block reads that mixes two residual values; but that holds the older one twice.
    """
    covered: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if len(below[node]) == 2 or node in covered:
            covered.update(below[node])
    second_best: fx.Node | None = None
    sums = [node for node in graph.nodes if len(below[node]) == 2 and node not in covered]
    for root in sorted(sums, key=lambda node: -size[node]):
        tree, leaves, _, twice = _flatten(root, below, size)
        images = [_images(leaf, below, tree) for leaf in leaves]
        depends = _depends_on(graph, [*tree, *(node for path in images for node in path)], after)
        if not any(path[-1] in depends for path in images):
            continue
        weighted: set[fx.Node] = set()
        for node in graph.nodes:
            inputs = (*node.all_input_nodes, *after.get(node, ()))
            has_weight = ops.multiplies(node) and any(arg in constant for arg in inputs)
            if node in depends and (has_weight or any(arg in weighted for arg in inputs)):
                weighted.add(node)
        if twice is None and any(path[-1] in weighted for path in images):
            return root
        second_best = second_best or root
    return second_best


def _images(leaf: fx.Node, below: dict[fx.Node, tuple[fx.Node, ...]], tree: Container[fx.Node]) -> list[fx.Node]:
    """`leaf` and what it is a linear image of, down to the node that identifies the term."""
    images = [leaf]
    while len(below[images[-1]]) == 1 and below[images[-1]][0] not in tree:
        images.append(below[images[-1]][0])
    return images


def _flatten(
    root: fx.Node, below: dict[fx.Node, tuple[fx.Node, ...]], size: dict[fx.Node, int]
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


def _depends_on(graph: fx.Graph, nodes: Iterable[fx.Node], after: dict[fx.Node, tuple[fx.Node, ...]]) -> set[fx.Node]:
    """Nodes that depend on any of `nodes` (which are members only if they depend on another one)."""
    sources = set(nodes)
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if any(arg in sources or arg in found for arg in (*node.all_input_nodes, *after.get(node, ()))):
            found.add(node)
    return found


def _number(
    chain: list[fx.Node], below: dict[fx.Node, tuple[fx.Node, ...]], size: dict[fx.Node, int]
) -> tuple[list[fx.Node], list[int], dict[fx.Node, TermSet]]:
    """Number the leaves from the base upwards, so that every tree node holds one interval of them."""
    leaves = [chain[0]]
    joins = [0]
    sets = {chain[0]: TermSet(((0, 1),))}
    for position, node in enumerate(chain[1:], start=1):
        for branch in below[node]:
            if branch is chain[position - 1]:
                continue
            stack: list[tuple[fx.Node, int]] = [(branch, -1)]
            while stack:
                current, started = stack.pop()
                if started >= 0:
                    sets[current] = TermSet(((started, len(leaves)),))
                elif size[current] == 0:
                    sets[current] = TermSet(((len(leaves), len(leaves) + 1),))
                    leaves.append(current)
                    joins.append(position)
                else:
                    stack.append((current, len(leaves)))
                    stack.extend((arg, -1) for arg in reversed(below[current]))
        sets[node] = TermSet(((0, len(leaves)),))
    return leaves, joins, sets


def _add_side_sums(stream: Stream, graph: fx.Graph, images: list[list[fx.Node]]) -> None:
    """Enter sums and linear images of tree nodes that are not in the tree themselves.

    A side sum may hold a term through another cast, view or multiplier than the main chain does.
    """
    for index, below_leaf in enumerate(images[1:], start=1):
        stream.partial.update(dict.fromkeys(below_leaf[1:], TermSet(((index, index + 1),))))
    known = {**stream.tree, **stream.partial}
    for node in graph.nodes:
        below = stream.below[node]
        if node in known or not below or not all(arg in known for arg in below):
            continue
        parts = [known[arg] for arg in below]
        total = parts[0] if len(parts) == 1 else parts[0] | parts[1]
        if len(parts) == 2 and parts[0] & parts[1]:
            continue  # a combination of two streams is what a sub-block computes, not a residual value
        known[node] = stream.partial[node] = total
        if 0 in total:
            stream.values[node] = total


def _refuse_written_in_place(stream: Stream, graph: fx.Graph) -> None:
    """After normalisation no tree node may still be written: its readers would see two values under one name."""
    memory: dict[int | None, fx.Node] = {}
    for node in sorted((*stream.tree, *stream.values), key=lambda n: stream.order[n]) if stream.after else ():
        memory.setdefault(ops.storage(node), node)  # names of one memory: the oldest has the most to lose
    for node in graph.nodes:
        for base in ops.mutated_args(node):
            victim = memory.get(ops.storage(base))
            if victim is not None and stream.order[victim] < stream.order[node]:
                raise UnsupportedPatternError(
                    f"{ops.op_name(node)!r} writes into the residual stream and has no out-of-place form",
                    way_out="write the model with out-of-place operations on the residual stream",
                    where=ops.where(node),
                )
