"""The residual stream as a sum tree: which values are residual values, and which terms each of them holds.

In:    a normalised graph (single assignment, checkpoints opened) with fake values.
Out:   `Stream`: the leaves of the final sum (the terms) and every residual value with its set of terms; or None if
       the graph has no such sum.
Never: changes the graph; looks at names, classes or module paths.

Algorithm (linear in the graph):
1. size(node) = number of sums below it, through linear unary ops that keep tokens apart. The largest in which one
   summand is computed from others with weights is the final hidden state, the root.
2. Flatten the tree under the root. A leaf that depends on no other part of the tree and lies deepest is the base
   (the embedding; a parameter, such as learned positions, only if there is no other); the path from the root to it is
   the main chain. The other leaves are what the sub-blocks added.
3. A residual value is a node of the main chain, or any other sum (or linear image) of tree nodes that holds the base:
   such as the stream without the routed experts in a graph that is in FarSkip form already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field

from torch import fx

from farskip_compile.errors import NotASumError, UnsupportedPatternError
from farskip_compile.passes.graph import effects, ops
from farskip_compile.passes.residual.sums import (
    Dataflow,
    Summands,
    depends_on,
    find_root,
    flatten,
    gates,
    images_of,
    operands,
    read_dataflow,
)
from farskip_compile.passes.residual.termset import TermSet


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
    below: Summands
    """The summands of each node of the graph: two of a sum, one of a linear unary op, none otherwise."""
    parents: dict[fx.Node, fx.Node]
    """The tree node that a tree node is a summand of."""
    flow: Dataflow
    """Dependences of the graph."""
    depends: set[fx.Node] = field(default_factory=set)
    """Nodes that depend on a residual value."""

    @property
    def order(self) -> Mapping[fx.Node, int]:
        """Position of each node in the graph."""
        return self.flow.order

    def inputs(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The nodes whose data `node` depends on, memory writes included, shape-only arguments excluded."""
        return self.flow.uses[node]


def read_stream(graph: fx.Graph, whole: Set[fx.Node] = frozenset()) -> Stream | None:
    """Find the residual stream of `graph`; None if it holds no sum that a sub-block could read from.

    Args:
        graph: a normalised graph.
        whole: sums that are to be taken as one term, because their summands read each other.

    Raises:
        NotASumError: a value is added twice, so the sum has no table.
        UnsupportedPatternError: a part of the stream is written in place in a way that has no out-of-place form.
    """
    flow = read_dataflow(graph)
    below = {node: () if node in whole else operands(node, flow) for node in flow.nodes}
    size: dict[fx.Node, int] = {}
    for node in flow.nodes:
        size[node] = sum(size[arg] for arg in below[node]) + (len(below[node]) == 2)
    root = find_root(flow, below, size)
    if root is None:
        return None
    tree, tree_leaves, depth, twice = flatten(root, below, size)
    image_of = {leaf: images_of(leaf, below, tree) for leaf in tree_leaves}
    depends = depends_on(flow, [*tree, *(node for images in image_of.values() for node in images)])
    if twice is not None:
        raise NotASumError(
            "a value enters the residual sum twice, so no table can say which reader gets which copy",
            way_out="write the sum with a multiplication by a number instead",
            where=ops.where(twice),
        )
    base = max(
        (leaf for leaf in tree_leaves if image_of[leaf][-1] not in depends),
        key=lambda leaf: (leaf not in flow.constant, depth[leaf], -flow.order[leaf]),
        default=None,
    )
    if base is None:
        return None
    moving = {*tree, *depends, *(node for images in image_of.values() for node in images)}
    if gated := _gated([*tree, *image_of[base]], below, moving):
        return read_stream(graph, {*whole, *gated})
    parents = {arg: node for node in (*tree, *image_of[base]) for arg in below[node]}
    base = image_of[base][-1]  # the first sub-block may read it without the multiplier that its skip has
    chain = [base]
    while chain[-1] is not root:
        chain.append(parents[chain[-1]])
    leaves, joins, sets = _number(chain, below, size)
    values = {node: sets[node] for node in chain}
    inner = sets.keys() - set(leaves[1:])  # an image may be a leaf itself: the same value with another multiplier
    images = [images_of(leaf, below, inner) for leaf in leaves]
    cores = [image[-1] for image in images]
    if len(set(cores)) < len(cores):
        again = next(leaf for index, leaf in enumerate(leaves) if cores[index] in cores[:index])
        raise NotASumError(
            "one value enters the residual sum as two terms, with different multipliers",
            way_out="add it once, with the sum of the multipliers",
            where=ops.where(again),
        )
    stream = Stream(root, base, leaves, cores, joins, values, sets, {}, below, parents, flow)
    _add_side_sums(stream, graph, images, moving)
    stream.depends = depends_on(flow, stream.values)
    _refuse_written_in_place(stream, graph)
    return stream


def _number(
    chain: list[fx.Node], below: Summands, size: dict[fx.Node, int]
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


def _gated(nodes: Iterable[fx.Node], below: Summands, moving: Set[fx.Node]) -> set[fx.Node]:
    """Products of the stream, or of a part of it, with a gate that hangs on the stream: linear in neither.

    A gate on a single term is another matter: it belongs to the sub-block that computes the term.
    """
    return {node for node in nodes if any(gate in moving for gate in gates(node, below))}


def _add_side_sums(stream: Stream, graph: fx.Graph, images: list[list[fx.Node]], moving: Set[fx.Node]) -> None:
    """Enter sums and linear images of tree nodes that are not in the tree themselves.

    A side sum may hold a term through another cast, view or multiplier than the main chain does; not through a gate of
    its own that hangs on the stream (`moving`).
    """
    own_gates = {gate for path in images for node in path for gate in gates(node, stream.below)}
    for index, below_leaf in enumerate(images[1:], start=1):
        stream.partial.update(dict.fromkeys(below_leaf[1:], TermSet(((index, index + 1),))))
    known = {**stream.tree, **stream.partial}
    for node in graph.nodes:
        below = stream.below[node]
        if node in known or not below or not all(arg in known for arg in below):
            continue
        if any(gate in moving and gate not in own_gates for gate in gates(node, stream.below)):
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
    if not stream.flow.after:
        return  # nothing is read after a write
    memory: dict[int | None, fx.Node] = {}
    for node in sorted((*stream.tree, *stream.values), key=lambda n: stream.order[n]):
        memory.setdefault(effects.storage(node), node)  # names of one memory: the oldest has the most to lose
    for node in graph.nodes:
        for base in effects.mutated_args(node):
            victim = memory.get(effects.storage(base))
            if victim is not None and stream.order[victim] < stream.order[node]:
                raise UnsupportedPatternError(
                    f"{ops.op_name(node)!r} writes into the residual stream and has no out-of-place form",
                    way_out="write the model with out-of-place operations on the residual stream",
                    where=ops.where(node),
                )
