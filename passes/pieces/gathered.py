"""Exchanges by all-gather and reduce-scatter, which stay whole: found, so that nobody takes them for cut.

In:    a post-grad graph.
Out:   the gathers of tokens for which experts are chosen, and whose sums are scattered to the same ranks. None where
       tokens are exchanged by all-to-all: then the gathers are those of a sequence that is spread over the ranks.
Never: cuts one: that rows pass through the experts apart is not shown for exchanges without slots.

Algorithm, one walk: a value knows the newest gather that it depends on, and whether a choice (a top-k) was made since.
A reduce-scatter over the ranks of a gather since which a choice was made is its other half.
"""

from __future__ import annotations

from torch import fx

from farskip_compile.passes.graph import ops


def gathered_exchanges(graph: fx.Graph) -> list[fx.Node]:
    """The launches of the gathers, in order."""
    if ops.calls(graph, ops.is_all_to_all):
        return []
    place = {node: number for number, node in enumerate(graph.nodes)}
    since: dict[fx.Node, tuple[fx.Node, bool]] = {}
    found: dict[fx.Node, None] = {}
    for node in graph.nodes:
        if ops.is_collective(node) and "all_gather" in ops.op_name(node):
            since[node] = node, False
            continue
        known = [since[arg] for arg in node.all_input_nodes if arg in since]
        if not known:
            continue
        newest = max((gather for gather, _ in known), key=place.__getitem__)
        chosen = ops.is_selection(node) or any(choice for gather, choice in known if gather is newest)
        if not ops.is_collective(node):
            since[node] = newest, chosen
        elif chosen and "reduce_scatter" in ops.op_name(node) and _same_ranks(newest, node):
            found[newest] = None
    return list(found)


def _same_ranks(one: fx.Node, other: fx.Node) -> bool:
    return ops.process_group(one) == ops.process_group(other)
