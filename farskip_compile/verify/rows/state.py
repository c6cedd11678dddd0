# SPDX-License-Identifier: Apache-2.0
"""What is known of one value of a graph: on which rows of the residual stream a row of it depends.

Contract: pure data, and how several pieces of it are put together. A row of the stream is what one token has: an index
into every dimension but the last.

    FREE       depends on no residual value: parameters, positions, masks, other inputs; `picked` if an input of the
               call chose it among weights, as a hash of token ids does
    DECISION   depends on residual values through integers and booleans only, such as what a router chose
    ROWS       each row depends on the same row of the stream; `layout` says where the rows are
    MOVED      rows were picked, permuted or summed as decisions say: each may be any token's, none is a mixture
    MIXED      a row depends on several rows
    UNKNOWN    an operator that nothing is known about was given one of the above
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple

from torch import fx

from farskip_compile.verify.rows.layout import RowCount, RowLayout, broadcast, is_picked


class RowDependence(IntEnum):
    """How a value depends on rows, from the least to the most."""

    FREE = 0
    DECISION = 1
    ROWS = 2
    MOVED = 3
    MIXED = 4
    UNKNOWN = 5


class RowFacts(NamedTuple):
    """What is known of one value."""

    state: RowDependence
    layout: RowLayout = ()
    """Of `ROWS`; of a `DECISION` that each row makes about itself, too; of `MOVED` if it is known."""
    picked: bool = False
    """It was taken from places that a decision, or of `FREE` an input of the call, names."""
    decided: bool = False
    """Whole rows are what they are because of a decision: scaled by it, or multiplied by a weight that it chose."""
    summed: bool = False
    """Of picked rows: some were added up, so that what is computed from it may be given to none but its own place."""
    at: fx.Node | None = None
    """The node that moved or mixed rows, or is unknown."""
    parts: tuple[RowFacts, ...] = ()
    """Of a tuple, one for each member; the rest is then that of the worst."""


FREE = RowFacts(RowDependence.FREE)
CHOSEN = RowFacts(RowDependence.FREE, picked=True)
DECISION = RowFacts(RowDependence.DECISION)
FactsOf = Callable[[object], RowFacts]
"""What is known of an argument."""
RowRule = Callable[[fx.Node, FactsOf], RowFacts]
"""What is known of a node, from what is known of its arguments."""


def merged(parts: Sequence[RowFacts], node: fx.Node | None = None) -> RowFacts:
    """What is known of a value of which it is only known that it is one of these, or made of them without mixing."""
    found = worst(parts)
    if found.state is not RowDependence.ROWS:
        return found
    layouts_found = {part.layout for part in parts if part.state is RowDependence.ROWS}
    if len(layouts_found) > 1:
        return RowFacts(RowDependence.MOVED, decided=any(part.decided for part in parts), at=node)
    layout = layouts_found.pop()
    decided = any(part.decided or (part.state is RowDependence.DECISION and part.layout != layout) for part in parts)
    return RowFacts(RowDependence.ROWS, layout, any(part.picked for part in parts), decided)


def decision_of(found: RowFacts) -> RowFacts:
    """What is decided by a value: about the same rows, if it is known which they are."""
    alone = found.state is RowDependence.ROWS and not found.decided and not any(map(is_picked, found.layout))
    return RowFacts(RowDependence.DECISION, found.layout if alone else ())


def about_others(parts: Sequence[RowFacts], layout: RowLayout, shape: Sequence[RowCount]) -> bool:
    """Whether a decision among these may be another row's, where rows are as `layout` says in a value of `shape`."""
    decisions = [part for part in parts if part.state is RowDependence.DECISION]
    return any(not one.layout or broadcast([layout, one.layout], shape) != layout for one in decisions)


def worst(parts: Sequence[RowFacts]) -> RowFacts:
    """The one of which least is known; decided if one of them is."""
    if len(parts) == 1:
        return parts[0]
    found = FREE
    for part in parts:
        if part.state > found.state:
            found = part
    if found.state is RowDependence.FREE:
        return parts[0] if parts else FREE
    if (
        found.state is RowDependence.MOVED
        and len(held := [part for part in parts if part.state >= RowDependence.ROWS]) > 1
    ):
        same = all(part.state is RowDependence.MOVED and part.layout == found.layout for part in held)
        summed, decided = any(part.summed for part in held), any(part.decided for part in parts)
        return RowFacts(RowDependence.MOVED, found.layout if same else (), decided=decided, summed=summed, at=found.at)
    if found.state is RowDependence.DECISION and any(
        part.layout != found.layout for part in parts if part.state is found.state
    ):
        return DECISION
    return found
