# SPDX-License-Identifier: Apache-2.0
"""Exchanges by all-gather and reduce-scatter, found by dataflow: tokens of all ranks on each, for its own experts.

In:    a Dynamo graph or a post-grad one.
Out:   for each reduce-scatter of what was made of gathered tokens, with a choice of experts, the gathers over the same
       ranks and what lies between. None where tokens are exchanged by all-to-all: then the gathers are those of a
       sequence that is spread over the ranks.
Never: takes gathers for exchanges between which nothing is chosen, as those of sequence parallelism; says that one may
       be cut: that is proved of the pieces (`farskip_compile.verify.tokens`).

Algorithm: what a reduce-scatter depends on, up to gathers over its ranks and to other reduce-scatters, is between. The
choice is made after the newest gather (hidden states were gathered), or before one that gathers numbers (the chosen
experts). What is read of older layers ends at their reduce-scatters: so all walks together are linear in a stack.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import fx

from farskip_compile.passes.graph import comms, ops
from farskip_compile.passes.graph.walk import walk_back
from farskip_compile.passes.pieces.notes import is_piece

BY_GATHER = 'tokens are gathered for all experts of a rank: such exchanges are cut along tokens (pieces_along="tokens")'


@dataclass(frozen=True)
class Gathered:
    """One exchange."""

    gathers: Sequence[fx.Node]
    """Over the ranks of `scatter`, in order."""
    scatter: fx.Node
    between: Collection[fx.Node] = field(repr=False)
    """All that `scatter` depends on, up to gathers and other reduce-scatters, and it."""

    @property
    def launch(self) -> fx.Node:
        """The newest gather."""
        return self.gathers[-1]


def gathered_exchanges(graph: fx.Graph) -> list[Gathered]:
    """Those of `graph` that are no pieces yet, in order."""
    scatters = ops.calls(graph, comms.is_scatter)
    if not scatters or ops.calls(graph, comms.is_all_to_all):
        return []
    place = {node: number for number, node in enumerate(graph.nodes)}
    found = []
    for scatter in scatters:
        group = comms.process_group(scatter)
        gathers: dict[fx.Node, None] = {}
        stop = partial(_ends, group)
        between = set(walk_back(scatter.all_input_nodes, stop, border=gathers)) | {scatter}
        ordered = sorted(filter(comms.is_gather, gathers), key=place.__getitem__)
        if ordered and not is_piece(scatter) and _is_chosen(ordered, sorted(between, key=place.__getitem__)):
            found.append(Gathered(ordered, scatter, between))
    return found


def _ends(group: str, node: fx.Node) -> bool:
    return comms.is_scatter(node) or (comms.is_gather(node) and comms.process_group(node) == group)


def _is_chosen(gathers: Sequence[fx.Node], between: Sequence[fx.Node]) -> bool:
    """Whether experts are chosen after the newest of `gathers`, or one of them gathers the chosen ones."""
    after = {gathers[-1]}
    for node in between:
        if not after.isdisjoint(node.all_input_nodes):
            if ops.is_selection(node):
                return True
            after.add(node)
    return any(not ops.is_floating(gather) and _chose(gather) for gather in gathers)


def _chose(gather: fx.Node) -> bool:
    """Whether the numbers that are gathered were chosen, by way of numbers alone."""
    walk = walk_back(gather.all_input_nodes, lambda node: ops.is_floating(node) or comms.is_collective(node))
    return any(map(ops.is_selection, walk))
