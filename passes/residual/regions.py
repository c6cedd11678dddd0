"""Which nodes compute each term, and which residual values it reads.

In:    a graph and its `Stream`.
Out:   for each term a `Region`: the nodes that it owns and the residual values that it reads; terms that turn out
       to be one (an inner `h + f(h)` behind the experts) are merged first.
Never: changes the graph.

Algorithm (each node is owned once, so linear in the graph):
1. front(node) = newest residual value that reaches `node` without passing another one; one forward walk.
2. For each term, in the order of their cores (what uses a core comes behind it), walk back until residual values.
   Nodes reached first are owned; nodes that an earlier term owns are met.
3. Values reached directly are reads; so is another term, where a region uses what a sub-block adds as it is. A met
   node is a read of its front if that is as new as the newest direct read (a norm that two sub-blocks share), else a
   side channel (keys and values, router state, reused indices of an earlier layer), which belongs to the region that
   makes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx

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

    Args:
        stream: of the graph.
        side: side channels that are known from an earlier reading. By age alone they can look like shared norms once
            the region reads less of the stream.
    """
    newest = _fronts(stream)
    owner: dict[fx.Node, int] = {}
    regions = [Region(leaf) for leaf in stream.leaves]
    term_of = {
        node: terms.newest
        for node, terms in (*stream.tree.items(), *stream.partial.items())
        if len(terms) == 1 and node not in stream.values
    }
    for index in sorted(range(1, len(regions)), key=lambda i: stream.order[stream.cores[i]]):
        region = regions[index]
        direct: dict[fx.Node, None] = {}
        met: list[fx.Node] = []
        stack = [region.leaf]
        while stack:
            node = stack.pop()
            if node in stream.values:
                direct[node] = None
            elif owner.get(node, index) != index:
                if term_of.get(node, index) != index:
                    region.direct = region.direct | TermSet.of([term_of[node]])
                else:
                    met.append(node)
            elif node not in owner and node in stream.depends:
                owner[node] = index
                region.owned.append(node)
                stack.extend(stream.inputs(node))
        _split_reads(stream, region, direct, met, newest, side.get(stream.cores[index].name, frozenset()))
    return regions


def rank(stream: Stream, value: fx.Node) -> tuple[int, int]:
    """Age of a residual value: newest term first, then how many terms it holds."""
    terms = stream.values[value]
    return terms.newest, len(terms)


def _fronts(stream: Stream) -> dict[fx.Node, fx.Node]:
    """The newest residual value behind each node that depends on the stream."""
    newest: dict[fx.Node, fx.Node] = {}
    for node in stream.order:
        if node not in stream.depends:
            continue
        best: fx.Node | None = None
        for arg in stream.inputs(node):
            value = arg if arg in stream.values else newest.get(arg)
            if value is not None and (best is None or rank(stream, value) > rank(stream, best)):
                best = value
        if best is not None:
            newest[node] = best
    return newest


def _split_reads(
    stream: Stream,
    region: Region,
    direct: dict[fx.Node, None],
    met: list[fx.Node],
    newest: dict[fx.Node, fx.Node],
    side: frozenset[str],
) -> None:
    """Tell shared reads from side channels among the met nodes."""
    fronts = [newest[node] for node in met if node in newest and node.name not in side]
    limit = max((rank(stream, value) for value in (direct or fronts)), default=None)
    reads = dict(direct)
    for node in met:
        value = newest.get(node) if node.name not in side else None
        if value is not None and limit is not None and rank(stream, value) >= limit:
            reads[value] = None
            region.met.append(node)
        else:
            region.side_channels.append(node)
    region.read_values = sorted(reads, key=lambda value: stream.order[value])


def reads(stream: Stream, region: Region) -> TermSet:
    """The terms that `region` reads, through any of its residual values or as they are."""
    total = region.direct
    for value in region.read_values:
        total = total | stream.values[value]
    return total
