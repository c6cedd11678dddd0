# SPDX-License-Identifier: Apache-2.0
"""How collectives pass rows on: to other ranks, from them, or added up with theirs.

Contract: as in `rules`. The rank is an index of rows, too: a gather puts it in front of the first dimension, a scatter
takes it off again. What moves it elsewhere in between is a view like any other.
"""

from __future__ import annotations

from torch import fx

from farskip_compile.passes.graph import ops
from farskip_compile.verify.rows import layout as layouts
from farskip_compile.verify.rows.arguments import first_of
from farskip_compile.verify.rows.layout import RowAxis, loosened, tokens
from farskip_compile.verify.rows.moved import along
from farskip_compile.verify.rows.state import FactsOf, RowDependence, RowFacts, worst

RANK = 1000
"""The index of the rank, among those of rows; that of a second group is the next number."""


def exchanged(node: fx.Node, given: FactsOf) -> RowFacts:
    """Rows go to other ranks."""
    found = worst([given(arg) for arg in node.all_input_nodes])
    first, value = first_of(node, given)[1], ops.tensor(node)
    if found.state not in (RowDependence.ROWS, RowDependence.MOVED):
        return found
    layout = along(loosened(first.layout), [0], value.shape) if value is not None else ()
    return RowFacts(RowDependence.MOVED, layout, decided=True, at=node)


def gathered(node: fx.Node, given: FactsOf) -> RowFacts:
    """What all ranks hold, one behind the other along the first dimension."""
    _, rows = first_of(node, given)
    value = ops.tensor(node)
    ranks = node.args[1] if len(node.args) > 1 else node.kwargs.get("group_size")
    if rows.state is not RowDependence.ROWS or value is None or not isinstance(ranks, int):
        return rows if rows.state is not RowDependence.ROWS else RowFacts(RowDependence.UNKNOWN, at=node)
    first, *others = rows.layout
    if first and not tokens(first):
        return rows._replace(layout=(*layouts.features(value.shape[:1]), *others))
    taken = [token for dim in rows.layout for token in tokens(dim) if token >= RANK]
    return rows._replace(layout=((RowAxis(max(taken, default=RANK - 1) + 1, ranks), *first), *others))


def scattered(node: fx.Node, given: FactsOf) -> RowFacts:
    """This rank's share of a sum, along the first dimension."""
    _, rows = first_of(node, given)
    value = ops.tensor(node)
    if rows.state is not RowDependence.ROWS or value is None:
        return rows
    first, *others = rows.layout
    if not tokens(first):
        return rows._replace(layout=(*layouts.features(value.shape[:1]), *others))
    rank = first[0].token
    if rank is None or rank < RANK:
        return RowFacts(
            RowDependence.MOVED, along(loosened(rows.layout), [0], value.shape), decided=rows.decided, at=node
        )
    return rows._replace(layout=(first[1:], *others))
