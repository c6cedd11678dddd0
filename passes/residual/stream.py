# SPDX-License-Identifier: Apache-2.0
"""The residual stream as a sum tree: which values are residual values, and which terms each of them holds.

In:    a normalised graph (single assignment, checkpoints opened) with fake values.
Out:   `Stream`: the leaves of the final sum (the terms) and every residual value with its set of terms; or None if
       the graph has no such sum.
Never: changes the graph; looks at names, classes or module paths.

Algorithm (linear in the graph for each sum that step 1 or step 3 tries):
1. Root: the largest sum in which one summand is computed from others with weights (`find_root`), flattened.
2. Base (the embedding): the deepest leaf that depends on no other part of the tree; a parameter, such as learned
   positions, only if there is no other. In a part of a model, `carried` marks the base.
3. Gates: a product of the stream with a gate that depends on the stream is linear in neither. It is one term as a
   whole; begin again.
4. Number the leaves, the terms, along the main chain: the path from the base to the root. Each other leaf is what a
   sub-block adds, and is identified by its core: the node below its linear unary ops.
5. Side sums: a residual value is a node of the main chain, or any other sum (or linear image) of tree nodes that holds
   the base, such as the stream without the routed experts in a graph that is in FarSkip form already. The row maps of
   the main chain (`row_maps`) part it into segments with rows of their own; a side sum goes through the same row maps.
6. Refuse a stream that is written in place: its readers would see two values under one name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

from torch import fx

from farskip_compile.errors import NotASumError, UnsupportedPatternError
from farskip_compile.passes.graph import effects, user_calls
from farskip_compile.passes.graph.walk import walk_back
from farskip_compile.passes.residual.row_maps import RowMaps, row_maps_of_stream, rows_taken, step_of
from farskip_compile.passes.residual.sums import (
    Dataflow,
    Summands,
    SumTree,
    choose_base,
    depends_on,
    find_root,
    gates,
    images_of,
    read_dataflow,
    sizes_of,
    summands_of,
)
from farskip_compile.passes.residual.termset import TermSet

_NO_TERMS = TermSet()


@dataclass(frozen=True, eq=False)
class Stream:
    """The sum tree of the residual stream of one graph."""

    flow: Dataflow
    """Dependences of the graph."""
    below: Summands
    """The summands of each node of the graph: two of a sum, one of a linear unary op, none otherwise."""
    root: fx.Node
    """The final hidden state."""
    leaves: list[fx.Node]
    """The terms; the position in this list is the term's index."""
    cores: list[fx.Node]
    """For each leaf, the node below its linear unary ops: its identity, whatever collective or cast follows it."""
    joins: list[int]
    """For each leaf, the position on the main chain at which it is added."""
    parents: dict[fx.Node, fx.Node]
    """The tree node that a tree node is a summand of."""
    tree: dict[fx.Node, TermSet]
    """All nodes of the sum, leaves and partial sums without the base included, with the terms that they hold."""
    side_sums: dict[fx.Node, TermSet]
    """Sums and linear images of tree nodes outside the tree, residual values among them."""
    segments: dict[fx.Node, int]
    """For each residual value the number of row maps in front of it."""

    @property
    def base(self) -> fx.Node:
        """The embedding: term 0."""
        return self.leaves[0]

    @property
    def order(self) -> Mapping[fx.Node, int]:
        """Position of each node in the graph."""
        return self.flow.order

    @cached_property
    def values(self) -> dict[fx.Node, TermSet]:
        """Residual values: nodes that hold the base, with the terms that they are the sum of."""
        return {node: terms for node, terms in self.sums() if 0 in terms}

    @cached_property
    def depends(self) -> Set[fx.Node]:
        """Nodes that depend on a residual value."""
        return depends_on(self.flow, self.values)

    def sums(self) -> Iterator[tuple[fx.Node, TermSet]]:
        """All nodes that are sums of terms (or a term itself), with these terms."""
        yield from self.tree.items()
        yield from self.side_sums.items()

    def terms_of(self, node: fx.Node) -> TermSet:
        """The terms that `node` is the sum of; empty if it is not a sum of terms."""
        return self.tree.get(node) or self.side_sums.get(node, _NO_TERMS)

    def is_residual(self, node: fx.Node) -> bool:
        """Whether `node` is a residual value."""
        return node in self.values

    def inputs(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The nodes whose data `node` depends on, memory writes included, shape-only arguments excluded."""
        return self.flow.uses[node]

    def up_to_chain(self, leaf: fx.Node) -> list[fx.Node]:
        """`leaf` and what lies between it and the main chain, such as the reduction of a sum that it is part of."""
        path = [leaf]
        while (parent := self.parents.get(path[-1])) is not None and not self.is_residual(parent):
            path.append(parent)
        return path


def read_stream(graph: fx.Graph, whole: Set[fx.Node] = frozenset()) -> Stream | None:
    """Find the residual stream of `graph`; None if it holds no sum that a sub-block could read from.

    `whole` are sums that are to be taken as one term, because their summands read each other.

    Raises:
        NotASumError: a value is added twice, so the sum has no table.
        UnsupportedPatternError: a part of the stream is written in place in a way that has no out-of-place form.
    """
    flow = read_dataflow(graph)
    # 1, 2
    below, size = _summands(flow, whole)
    row_maps = row_maps_of_stream(flow, whole, size)
    found = _find_sum(flow, *_summands(flow, whole, row_maps)) if row_maps else _find_sum(flow, below, size)
    # 3
    while found is not None and (gated := _gated(found)):
        whole = {*whole, *gated}
        found = _find_sum(flow, *_summands(flow, whole, row_maps))
    if found is None:
        return None
    # 4
    below, path_to_base = found.below, found.tree.images[found.base]
    parents = {arg: node for node in (*found.tree.inner, *path_to_base) for arg in below[node]}
    chain = [path_to_base[-1]]  # the first sub-block may read it without the multiplier that its skip has
    while chain[-1] is not found.tree.root:
        chain.append(parents[chain[-1]])
    leaves, joins, tree = _number(chain, below, found.size)
    inner = tree.keys() - set(leaves[1:])  # an image may be a leaf itself: the same value with another multiplier
    images = [images_of(leaf, below, inner) for leaf in leaves]
    cores = [image[-1] for image in images]
    _refuse_two_multipliers(leaves, cores)
    # 5
    segments = _segments(chain, row_maps)
    side_sums = _find_side_sums(found, tree, images, row_maps, segments)
    stream = Stream(flow, below, found.tree.root, leaves, cores, joins, parents, tree, side_sums, segments)
    # 6
    _refuse_written_in_place(stream)
    return stream


@dataclass(frozen=True, eq=False)
class _Sum:
    """A candidate for the residual sum."""

    flow: Dataflow
    below: Summands
    size: Mapping[fx.Node, int]
    """How many sums are below each node."""
    tree: SumTree
    base: fx.Node
    """The leaf of the base."""
    moving: Set[fx.Node]
    """Parts of the sum, and all that depends on them."""


def _summands(
    flow: Dataflow, whole: Set[fx.Node], row_maps: RowMaps = MappingProxyType({})
) -> tuple[Summands, dict[fx.Node, int]]:
    """Return the summands of each node, and how many sums are below it."""
    below = summands_of(flow, whole, row_maps)
    return below, sizes_of(flow.nodes, below)


def _find_sum(flow: Dataflow, below: Summands, size: Mapping[fx.Node, int]) -> _Sum | None:
    """Steps 1 and 2."""
    tree = find_root(flow, below, size)
    if tree is None:
        return None
    if tree.twice is not None:
        raise NotASumError(
            "a value enters the residual sum twice, so no table can say which reader gets which copy",
            way_out="write the sum with a multiplication by a number instead",
            where=user_calls.where(tree.twice),
        )
    parts = tree.parts()
    depends = depends_on(flow, parts)
    base = choose_base(flow, tree, depends)
    return None if base is None else _Sum(flow, below, size, tree, base, {*parts, *depends})


def _gated(found: _Sum) -> set[fx.Node]:
    """Products of the stream, or of a part of it, with a gate that depends on the stream.

    A gate on a single term is another matter: it belongs to the sub-block that computes the term.
    """
    nodes = (*found.tree.inner, *found.tree.images[found.base])
    return {node for node in nodes if not found.moving.isdisjoint(gates(node, found.below))}


def _number(
    chain: Sequence[fx.Node], below: Summands, size: Mapping[fx.Node, int]
) -> tuple[list[fx.Node], list[int], dict[fx.Node, TermSet]]:
    """Number the leaves from the base upwards, so that every tree node holds one interval of them.

    Returns:
        The leaves, the position on the chain at which each is added, and the terms of each tree node.
    """
    leaves = [chain[0]]
    joins = [0]
    terms = {chain[0]: TermSet.of([0])}
    for position, node in enumerate(chain[1:], start=1):
        branches = [arg for arg in below[node] if arg is not chain[position - 1]]
        added = list(walk_back(branches, inputs=lambda inner: below[inner][::-1] if size[inner] else ()))
        for leaf in added:
            if size[leaf] == 0:
                terms[leaf] = TermSet.of([len(leaves)])
                leaves.append(leaf)
                joins.append(position)
        for inner in reversed(added):
            if size[inner] > 0:
                terms[inner] = _sum_of(below[inner], terms)
        terms[node] = TermSet(((0, len(leaves)),))
    return leaves, joins, terms


def _refuse_two_multipliers(leaves: Sequence[fx.Node], cores: Sequence[fx.Node]) -> None:
    known: set[fx.Node] = set()
    for leaf, core in zip(leaves, cores, strict=True):
        if core in known:
            raise NotASumError(
                "one value enters the residual sum as two terms, with different multipliers",
                way_out="add it once, with the sum of the multipliers",
                where=user_calls.where(leaf),
            )
        known.add(core)


def _segments(chain: Sequence[fx.Node], row_maps: RowMaps) -> dict[fx.Node, int]:
    segments, passed = {}, 0
    for node in chain:
        passed += node in row_maps
        segments[node] = passed
    return segments


def _find_side_sums(
    found: _Sum,
    tree: Mapping[fx.Node, TermSet],
    images: Sequence[Sequence[fx.Node]],
    row_maps: RowMaps,
    segments: dict[fx.Node, int],
) -> dict[fx.Node, TermSet]:
    """Find the sums and linear images of tree nodes that are not in the tree; enter the segment of each.

    A side sum may hold a term through another cast, view or multiplier than the main chain does; not through a gate of
    its own that depends on the stream, nor through a row map that the main chain does not go through.
    """
    steps = {(segments[rows], *step_of(node, rows)) for node, rows in row_maps.items()}
    side_sums: dict[fx.Node, TermSet] = {}
    for index, path in enumerate(images[1:], start=1):
        side_sums.update(dict.fromkeys(path[1:], TermSet.of([index])))
    own_gates = {gate for path in images for node in path for gate in gates(node, found.below)}
    foreign = found.moving - own_gates
    known = {**tree, **side_sums}
    for node in found.flow.nodes:
        if node in known:
            continue
        rows = rows_taken(node, segments.keys()) if steps else None
        if rows is not None and (segments[rows], *step_of(node, rows)) in steps:
            found.below[node] = (rows,)
        else:
            rows = None
        terms = _sum_of(found.below[node], known)
        if terms and foreign.isdisjoint(gates(node, found.below)):
            known[node] = side_sums[node] = terms
            if 0 in terms:
                segments[node] = max(segments.get(arg, 0) for arg in found.below[node]) + (rows is not None)
    return side_sums


def _sum_of(summands: Iterable[fx.Node], known: Mapping[fx.Node, TermSet]) -> TermSet:
    """The terms of a sum; none if a summand is unknown, or if two hold the same term.

    A combination of two streams is what a sub-block computes, not a residual value.
    """
    total = _NO_TERMS
    for arg in summands:
        terms = known.get(arg)
        if terms is None or (total and terms & total):
            return _NO_TERMS
        total = total | terms if total else terms
    return total


def _refuse_written_in_place(stream: Stream) -> None:
    writers = effects.writers(stream.flow.nodes)
    if not writers:
        return
    memory: dict[int | None, fx.Node] = {}
    for node in sorted({*stream.tree, *stream.values}, key=stream.order.__getitem__):
        memory.setdefault(effects.storage(node), node)  # names of one memory: the oldest has the most to lose
    for node, bases in writers.items():
        for base in bases:
            victim = memory.get(effects.storage(base))
            if victim is not None and stream.order[victim] < stream.order[node]:
                raise UnsupportedPatternError(
                    f"{user_calls.shown(node)!r} writes into the residual stream and has no out-of-place form",
                    way_out="write the model with out-of-place operations on the residual stream",
                    where=user_calls.where(node),
                )
