# SPDX-License-Identifier: Apache-2.0
"""The residual stack of a graph: the stream, and for each term what computes it and what that reads.

In:    a normalised graph.
Out:   a `Stack`, or None if the graph has none (a loss, a sampler).
Never: changes the graph; says what kind of sub-block computes a term, which `kinds` does.

Algorithm:
1. `stream`:  the residual sum, its terms and its residual values.
2. `regions`: what computes each term, and what that reads. Terms of one branch are one term, if one uses the other
   directly (an inner `h + f(h)`), or both what one attention, or the same experts, compute (an adapter on an output
   projection): take the smallest sum that holds two of them as a whole and start again.
3. A second stack in the graph is refused: the stream would be cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from torch import fx

from farskip_compile.errors import NotASumError, UnsupportedPatternError, Where
from farskip_compile.passes.graph import ops, user_calls
from farskip_compile.passes.graph.walk import walk_back
from farskip_compile.passes.residual.facts import KindFacts, gather_facts, is_result
from farskip_compile.passes.residual.not_a_sum import not_a_sum
from farskip_compile.passes.residual.regions import NO_SIDE_CHANNELS, Region, SideChannels, find_regions
from farskip_compile.passes.residual.stream import Stream, read_stream
from farskip_compile.passes.residual.sums import images_of


@dataclass(frozen=True)
class Stack:
    """Valid until the graph is edited."""

    stream: Stream
    regions: list[Region]
    """By term index."""

    @cached_property
    def facts(self) -> KindFacts:
        """What is known of each node; gathered when it is asked for, since not every reader does."""
        return gather_facts(self.stream, self.stream.root.graph)

    def side_channels(self) -> dict[str, frozenset[str]]:
        """To read the graph again with, once it is edited."""
        named = ((core.name, region) for core, region in zip(self.stream.cores, self.regions, strict=True))
        return {core: frozenset(node.name for node in region.side_channels) for core, region in named}

    def place(self, index: int, layer: int | None = None) -> Where:
        """Where a term is."""
        return user_calls.where(self.leaf(index), layer)

    def leaf(self, index: int) -> fx.Node:
        """The node of a term."""
        return self.regions[index].leaf


def read_stack(graph: fx.Graph, side: SideChannels = NO_SIDE_CHANNELS) -> Stack | None:
    """Find the residual stack of `graph`; `side` are side channels that are known from an earlier reading.

    Raises:
        NotASumError: a value is added twice, or a part of the stack is cut off from the rest.
        UnsupportedPatternError: a part of the stream is written in place in a way that has no out-of-place form.
    """
    stream = read_stream(graph)
    if stream is None:
        return None
    found = Stack(stream, find_regions(stream, side))
    whole: set[fx.Node] = set()
    while smallest := _smallest_entangled_sums(found) - whole:
        whole |= smallest
        stream = read_stream(graph, whole)
        if stream is None:
            return None
        found = Stack(stream, find_regions(stream, side))
    second = _second_stack(found.stream, found.regions, graph)
    if second is not None and not any(
        ops.is_attention(n) or ops.is_selection(n) or ops.is_scan(n) for n in graph.nodes
    ):
        return None  # unrelated sums, such as the updates of an optimizer
    if second is not None:
        raise not_a_sum(graph) or NotASumError(
            "a part of the residual stack is cut off from the rest: the stream is normalised, mixed or projected "
            "between two layers",
            way_out="compile what has a stream of its own, such as a second stack or next-token heads, apart from the "
            "rest, each as a model of its own",
            where=user_calls.where(second),
        )
    return found


def _smallest_entangled_sums(stack: Stack) -> set[fx.Node]:
    """Find the sums of two terms that are one, without those that hold another such sum.

    A shared expert that reads a skip connection of the routed part is not entangled with that part once the part counts
    as one term.

    Raises:
        UnsupportedPatternError: routed and shared experts read a skip connection that is added to neither alone.
    """
    found: dict[fx.Node, list[tuple[int, int]]] = {}
    for index, other in _entangled(stack):
        node = stack.leaf(index)
        while other not in stack.stream.terms_of(node):
            node = stack.stream.parents[node]
        found.setdefault(node, []).append((index, other))
    smallest = {node for node in found if found.keys().isdisjoint(_below(stack.stream, node))}
    for node in smallest:
        for _, other in found[node]:
            readers = [index for index, read in found[node] if read == other]
            if len({stack.leaf(index) in stack.facts.selected for index in readers}) > 1:
                raise UnsupportedPatternError(
                    "routed and shared experts read a value that is added beside them: whose skip connection it is "
                    "can't be told",
                    way_out="add the skip connection to one of them first: shared(f) + (f + experts(f))",
                    where=stack.place(other),
                )
    return smallest


def _below(stream: Stream, node: fx.Node) -> Iterator[fx.Node]:
    """The nodes that `node` is a sum of, partial sums included; not `node` itself."""
    return walk_back(stream.below[node], inputs=stream.below.__getitem__)


def _entangled(stack: Stack) -> Iterator[tuple[int, int]]:
    """Pairs of terms of one branch that use each other directly, or the same attention or experts."""
    joins = stack.stream.joins
    owner = {node: index for index, region in enumerate(stack.regions) for node in region.owned}
    for index, region in enumerate(stack.regions):
        shared = [node for node in (*region.met, *region.side_channels) if node in owner]
        others = {other for other in region.direct if joins[other] == joins[index]}
        for node in shared:
            if joins[owner[node]] == joins[index] and _may_be_result(stack.stream, node):
                others |= {owner[node]} if is_result(stack.facts, node) else set()
        yield from ((index, other) for other in sorted(others))


def _may_be_result(stream: Stream, node: fx.Node) -> bool:
    """Whether anything but a norm stands between `node` and the residual values: a few nodes tell, where facts take a
    walk through the graph."""
    behind = walk_back([node], lambda one: one not in stream.depends or stream.is_residual(one), stream.inputs)
    return any(ops.is_matmul(one) or ops.is_attention(one) or ops.is_scan(one) for one in behind)


def _second_stack(stream: Stream, regions: list[Region], graph: fx.Graph) -> fx.Node | None:
    """A sum `u + f(u)` of the stream's shape outside of all regions.

    Such a sum is a part of the stack that the residual sum does not reach, because the stream is normalised or mixed
    in between. Rewiring only the larger part would be a different architecture from the one asked for.
    """
    owned = {node for region in regions for node in region.owned}
    shape = ops.tensor(stream.root)
    assert shape is not None
    for node in graph.nodes:
        if node in owned or stream.terms_of(node) or len(stream.below[node]) != 2:
            continue
        if not ops.same_shape(ops.tensor(node), shape):  # type: ignore[arg-type]
            continue
        cores = [images_of(arg, stream.below)[-1] for arg in stream.below[node]]
        earlier, later = sorted(cores, key=stream.order.__getitem__)
        if _depends_on(stream, later, earlier):
            return node
    return None


def _depends_on(stream: Stream, node: fx.Node, earlier: fx.Node) -> bool:
    """Whether `node` depends on `earlier`; looks only at what lies between them in the graph."""
    limit = stream.order[earlier]
    found = walk_back(stream.inputs(node), lambda arg: stream.order[arg] < limit, stream.inputs)
    return any(arg is earlier for arg in found)
