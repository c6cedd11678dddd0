# SPDX-License-Identifier: Apache-2.0
"""Which nodes compute each term, and which residual values it reads.

In:    a graph and its `Stream`.
Out:   for each term a `Region`: the nodes that it owns and the residual values that it reads; terms that turn out
       to be one (an inner `h + f(h)` after the experts) are merged first.
Never: changes the graph.

Algorithm (each node is owned once, so linear in the graph):
1. newest(node) = the newest residual value that reaches `node` without passing another one; one forward walk.
2. For each term, in the order of their cores (users of a core come after it), walk back until residual values. Nodes
   reached first are owned; nodes that an earlier term owns are met.
3. Values reached directly are reads; so is another term, where a region uses what a sub-block adds as it is.
4. A met node is a read of its newest value if that is as new as the newest direct read (a norm that two sub-blocks
   share), else a side channel (keys and values, router state, reused indices of an earlier layer), which belongs to
   the region that makes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import or_

from torch import fx

from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.passes.graph import ops, user_calls
from farskip_compile.passes.graph.walk import walk_back
from farskip_compile.passes.residual.stream import Stream
from farskip_compile.passes.residual.termset import TermSet

SideChannels = Mapping[str, frozenset[str]]
"""Names of the nodes that a term uses beside the stream, by name of the term's core."""
NO_SIDE_CHANNELS: SideChannels = {}


@dataclass
class Region:
    """What computes one term."""

    leaf: fx.Node
    owned: list[fx.Node] = field(default_factory=list)
    read_values: list[fx.Node] = field(default_factory=list)
    """Residual values that it reads, in graph order."""
    met: list[fx.Node] = field(default_factory=list)
    """Nodes of other regions that it uses to reach what it reads (a shared norm)."""
    side_channels: list[fx.Node] = field(default_factory=list)
    """Nodes of earlier regions that it uses beside the residual stream."""
    direct: TermSet = field(default_factory=TermSet)
    """Other terms that it uses as they are, not through a residual value."""


def find_regions(stream: Stream, side: SideChannels = NO_SIDE_CHANNELS) -> list[Region]:
    """One region for each leaf of `stream`, by term index.

    `side` are side channels that are known from an earlier reading. By age alone they can look like shared norms once
    the region reads less of the stream.
    """
    newest = _newest_values(stream)  # 1
    values, depends = stream.values, stream.depends
    taken: set[fx.Node] = set()

    def leaves_region(node: fx.Node) -> bool:
        return node in values or node in taken or node not in depends

    regions = [Region(leaf) for leaf in stream.leaves]
    for index in sorted(range(1, len(regions)), key=lambda i: stream.order[stream.cores[i]]):
        # 2
        region, border = regions[index], dict[fx.Node, None]()
        region.owned = list(walk_back([region.leaf], leaves_region, stream.inputs, border))
        met = [node for node in border if node in taken]
        taken.update(region.owned)
        # 3
        direct = [node for node in border if node in values]
        others = {node: terms for node in met if (terms := _other_term(stream, node, index))}
        region.direct = reduce(or_, others.values(), TermSet())
        # 4
        known = side.get(stream.cores[index].name, frozenset())
        met_values = {node: None if node.name in known else newest.get(node) for node in met if node not in others}
        _split_met(stream, region, direct, met_values)
        _refuse_rows_of_later_layers(stream, region)
    return regions


def _refuse_rows_of_later_layers(stream: Stream, region: Region) -> None:
    """Refuse a sub-block that takes rows as later layers do: it mixes tokens where rows seem to begin anew."""
    own = stream.segments[stream.parents[stream.up_to_chain(region.leaf)[-1]]]
    for value in region.read_values:
        if stream.segments[value] > own:
            raise UnsupportedPatternError(
                f"a sub-block reads the stream through {ops.op_name(value)!r}, which takes the rows that later layers "
                "have",
                way_out="take these rows of what the sub-block computes, not of the stream",
                where=user_calls.where(value),
            )


def rank(stream: Stream, value: fx.Node) -> tuple[int, int]:
    """Age of a residual value: newest term first, then how many terms it holds."""
    terms = stream.values[value]
    return terms.newest, len(terms)


def _newest_values(stream: Stream) -> dict[fx.Node, fx.Node]:
    """The newest residual value that reaches each node that depends on the stream."""
    values, uses = stream.values, stream.flow.uses
    newest: dict[fx.Node, fx.Node] = {}
    for node in stream.flow.nodes:
        if node in stream.depends:
            reaching = dict.fromkeys(arg if arg in values else newest.get(arg, arg) for arg in uses[node])
            found = [value for value in reaching if value in values]
            if found:
                newest[node] = found[0] if len(found) == 1 else max(found, key=lambda value: rank(stream, value))
    return newest


def _other_term(stream: Stream, node: fx.Node, index: int) -> TermSet:
    """The term that `node` holds, if it is a single one and not the one with this index."""
    terms = stream.terms_of(node)
    return terms if len(terms) == 1 and terms.newest != index and not stream.is_residual(node) else TermSet()


def _split_met(stream: Stream, region: Region, direct: list[fx.Node], met: dict[fx.Node, fx.Node | None]) -> None:
    """Tell shared reads from side channels among the met nodes, which are given with their newest values.

    A node without one is known to be a side channel.
    """
    newest = [value for value in met.values() if value is not None]
    limit = max((rank(stream, value) for value in direct or newest), default=None)
    reads = dict.fromkeys(direct)
    for node, value in met.items():
        if value is not None and limit is not None and rank(stream, value) >= limit:
            reads[value] = None
            region.met.append(node)
        else:
            region.side_channels.append(node)
    region.read_values = sorted(reads, key=lambda value: stream.order[value])


def reads(stream: Stream, region: Region) -> TermSet:
    """The terms that `region` reads, through any of its residual values or as they are."""
    return reduce(or_, (stream.values[value] for value in region.read_values), region.direct)
