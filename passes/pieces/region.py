# SPDX-License-Identifier: Apache-2.0
"""The region of an exchange: what stands between a dispatch and its combine, if rows pass through it apart.

In:    a post-grad graph, forward or backward; how many pieces are asked for.
Out:   for each pair of exchanges a `CutRegion` that can be cut, or a `NotSeparableError` that names the node at fault.
Never: changes the graph; goes by names of models, modules or parameters.

Algorithm:
1. An exchange that reads what another one has brought is the combine of the newest such; an exchange that is part of
   no pair yet is a dispatch. What lies between the wait of the one and the launch of the other is the region.
2. The axes along which the dispatch can be cut are those inside of each rank's equal share of it: local experts,
   slots. They are tried from the slowest to the fastest, such that pieces are whole in memory; those that the
   pieces divide evenly first.
3. An axis is followed through the region (`rules`), and must arrive inside of each rank's share of the combine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from farskip_compile.passes.graph import comms, effects, ops
from farskip_compile.passes.graph.walk import spread, walk_back
from farskip_compile.passes.pieces.axis import AxisSize, CutAxis, axes_of, quotient
from farskip_compile.passes.pieces.notes import is_piece
from farskip_compile.passes.pieces.rules import SIZED, NotSeparableError, carry
from farskip_compile.passes.schedule.collectives import launches_with_waits


@dataclass(frozen=True)
class Exchange:
    """An all-to-all with its waits."""

    launch: fx.Node
    waits: Sequence[fx.Node]

    @property
    def ranks(self) -> int:
        """How many equal shares it has.

        Raises:
            NotSeparableError: it has no equal shares.
        """
        sizes = self.launch.args[1:3]
        for split in sizes:
            if not isinstance(split, list | tuple) or not all(isinstance(one, int) for one in split):
                raise NotSeparableError(self.launch, "its split sizes are decided by data, or symbols")
            if len(set(split)) != 1:
                raise NotSeparableError(self.launch, f"its split sizes differ: {list(split)}")
        if list(sizes[0]) != list(sizes[1]):  # type: ignore[arg-type]
            raise NotSeparableError(self.launch, "it brings another number of rows than it sends")
        return len(sizes[0])  # type: ignore[arg-type]


@dataclass(frozen=True)
class CutRegion:
    """What can be cut, and along which axis each value in it."""

    dispatch: Exchange
    combine: Exchange
    inside: Sequence[fx.Node]
    """In graph order."""
    axis: CutAxis
    """Of what is dispatched, and of what comes of it."""
    axes: dict[fx.Node, CutAxis]
    """Of the values inside, and of the waits of the dispatch."""
    sides: dict[tuple[fx.Node, fx.Node], CutAxis]
    """By reader: axes of values from outside that are cut for it."""


def pairs_of(graph: fx.Graph) -> list[tuple[Exchange, Exchange, list[fx.Node]]]:
    """Step 1: dispatch, combine, and what lies between them. Linear where what lies between is near in the graph."""
    nodes = list(graph.nodes)
    order = {node: place for place, node in enumerate(nodes)}
    exchanges = {
        launch: Exchange(launch, waits)
        for launch, waits in launches_with_waits(graph).items()
        if comms.is_all_to_all(launch) and not is_piece(launch) and not brings_numbers(launch)
    }
    exchange_of = {wait: launch for launch, one in exchanges.items() for wait in one.waits}
    newest: dict[fx.Node, fx.Node] = {}
    done: set[fx.Node] = set()
    pairs = []
    for node in nodes:
        found = (newest.get(arg) for arg in node.all_input_nodes)
        reaching = [one for one in found if one is not None and one not in done]
        source = max(reaching, key=order.__getitem__, default=None)
        if node in exchange_of:
            if exchange_of[node] not in done:
                newest[node] = exchange_of[node]
        elif node in exchanges and source is not None and comms.process_group(source) == comms.process_group(node):
            done |= {source, node}
            span = nodes[order[source] : order[node]]
            pairs.append((exchanges[source], exchanges[node], _between(exchanges[source], node, span)))
        elif source is not None and not comms.is_all_to_all(node):
            newest[node] = source
    return pairs


def brings_numbers(launch: fx.Node) -> bool:
    """Whether it is about rows: how many there are, which experts they are for. Quantised rows are bytes."""
    value = ops.tensor(launch)
    return value is not None and value.dtype in (torch.int64, torch.int32, torch.int16)


def _between(dispatch: Exchange, launch: fx.Node, span: Sequence[fx.Node]) -> list[fx.Node]:
    """The nodes of `span` that follow the dispatch and lead to the launch of the combine."""
    waits = set(dispatch.waits)
    follows = spread(span, waits.__contains__) - waits
    leads = set(walk_back(launch.all_input_nodes, lambda node: node not in follows))
    return [node for node in span if node in leads]


def find_region(dispatch: Exchange, combine: Exchange, inside: Sequence[fx.Node], pieces: int) -> CutRegion:
    """Steps 2 and 3.

    Raises:
        NotSeparableError: no axis can be followed; of several refusals the one that came furthest.
    """
    ranks = dispatch.ranks
    if combine.ranks != ranks:
        raise NotSeparableError(combine.launch, "it goes to other ranks than the dispatch")
    for node in inside:
        if effects.is_random(node) or effects.mutated_args(node) or comms.is_collective(node):
            raise NotSeparableError(node, "it writes, draws random numbers or communicates")
    refusals: list[NotSeparableError] = []
    for axis in candidates(dispatch.waits, ranks, pieces):
        try:
            return _follow(dispatch, combine, inside, axis, ranks)
        except NotSeparableError as refusal:
            refusals.append(refusal)
    if not refusals:
        raise NotSeparableError(dispatch.launch, f"nothing that it sends has {pieces} parts or more of a known number")
    place = {node: number for number, node in enumerate([*inside, combine.launch])}
    raise max(refusals, key=lambda refusal: place.get(refusal.node, -1))


def candidates(waits: Iterable[fx.Node], ranks: int, pieces: int) -> list[CutAxis]:
    """The axes along which what is waited for, which comes from as many ranks, has that many pieces: the best first."""
    shapes, views = [], list(waits)
    for view in views:  # grows
        value = ops.tensor(view)
        if value is not None:
            shapes.append(value.shape)
        views += [user for user in view.users if ops.op_name(user) in SIZED and ops.op_name(user) != "expand"]
    found = [axis for axis in axes_of(shapes[0], shapes, ranks) if axis.size >= pieces] if shapes else []
    return sorted(found, key=lambda axis: axis.size % pieces != 0)


def _follow(dispatch: Exchange, combine: Exchange, inside: Sequence[fx.Node], axis: CutAxis, ranks: int) -> CutRegion:
    axes = dict.fromkeys(dispatch.waits, axis)
    sides: dict[tuple[fx.Node, fx.Node], CutAxis] = {}
    for node in inside:
        carried = carry(node, axes)
        axes[node] = carried.axis
        sides.update({(node, arg): side for arg, side in carried.sides.items()})
    sent = axes[combine.launch.args[0]]  # type: ignore[index]
    if sent.dim == 0 and quotient(sent.outer, ranks) is None:
        raise NotSeparableError(combine.launch, "the rows are not inside of each rank's share of what it sends")
    named = [*axes.items(), *((arg, side) for (_, arg), side in sides.items())]
    for node, place in named:
        if not place.is_alone() and sum(not isinstance(size, int) for size in place.alone(_shape(node), 1)[0]) > 1:
            raise NotSeparableError(node, "several of its sizes are symbols")
    for node in inside:
        sizes = node.args[1] if ops.op_name(node) in SIZED else ()
        symbol = bool(sizes) and not isinstance(axes[node].scaled(_shape(node), 1)[axes[node].dim], int)
        if symbol and sum(size == -1 for place, size in enumerate(sizes) if place != axes[node].dim):  # type: ignore[arg-type]
            raise NotSeparableError(node, "the size that changes is a symbol, and another one is left open")
    return CutRegion(dispatch, combine, inside, axis, axes, sides)


def _shape(node: fx.Node) -> Sequence[AxisSize]:
    value = ops.tensor(node)
    assert value is not None
    return value.shape
