# SPDX-License-Identifier: Apache-2.0
"""Note on each node which terms of the residual stream it computes, in a way that differentiation keeps.

In:    a Dynamo graph, its stream and regions, and a name for each term.
Out:   the same graph; each node that computes a term names it in `meta["custom"]`. AOTAutograd carries that over to
       the ATen nodes that it traces, forward and backward, so that a collective can be identified by the term it is
       part of, whatever operator it is and whether it was called, redistributed, or is the gradient of another one.
Never: changes what is computed, or what caches are keyed by. The names are for reports, and for the order that the
       scheduler begins with (`published`): the configuration that leads to them is part of the caches' keys.

A node that several terms need, such as an all-gather after a norm that they share, or the reduction of their sum,
names all of them. Linear but for those. The bodies of higher-order operators are tagged too, including that of an
`autograd.Function`'s gradient: tracers read the nodes in them. Where AOTAutograd finds two equal nodes, it keeps one,
and the terms of that one; in a backward graph that is the one of the later term.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import fx

from farskip_compile.passes.graph import ops
from farskip_compile.passes.graph.walk import bodies, walk_back
from farskip_compile.passes.residual.regions import Region
from farskip_compile.passes.residual.stream import Stream

CUSTOM = "custom"
"""Key of a node's `meta` that belongs to the users of the graph: all of PyTorch's tracers keep its dictionary."""
KEY = "farskip_terms"
FLIGHT = "farskip_flight"
"""Key: of a wait for what came in flight from another graph, which collective, and of which process group."""
LANDED = "farskip_landed"
"""Key, beside `FLIGHT`: of several that come in flight on one channel, this is not the one that was launched last."""
DEPARTS = "farskip_departs"
"""Key: of a wait that is left to the next graph, the same."""


def tag_terms(stream: Stream, regions: Sequence[Region], names: Sequence[str]) -> None:
    """Tag the graph of `stream`; `regions` and `names` of the terms are by term index."""
    owned = {node for region in regions for node in region.owned}
    tags: dict[fx.Node, dict[str, None]] = {}
    for region, name in zip(regions, names, strict=True):
        for node in (*region.owned, *_shared(stream, region, owned), *stream.up_to_chain(region.leaf)):
            tags.setdefault(node, {})[name] = None
    for node, terms in list(tags.items()):
        _tag_bodies(node, terms, tags)
    for node, terms in tags.items():
        node.meta[CUSTOM] = {**node.meta.get(CUSTOM, {}), KEY: " ".join(terms)}


def terms_of(node: fx.Node) -> tuple[str, ...]:
    """The terms that `node` computes a part of, as far as is known."""
    return tuple(str(node.meta.get(CUSTOM, {}).get(KEY, "")).split())


def _tag_bodies(node: fx.Node, terms: Mapping[str, None], tags: dict[fx.Node, dict[str, None]]) -> None:
    if not ops.op_name(node).startswith("higher_order::"):
        return
    for body in bodies(node):
        for inner in body.graph.nodes:
            tags.setdefault(inner, {}).update(terms)
            _tag_bodies(inner, terms, tags)


def _shared(stream: Stream, region: Region, owned: set[fx.Node]) -> Iterator[fx.Node]:
    """Nodes of other regions through which `region` reaches what it reads."""
    return walk_back(region.met, lambda node: node not in owned or stream.is_residual(node), stream.inputs)
