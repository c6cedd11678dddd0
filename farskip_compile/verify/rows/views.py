# SPDX-License-Identifier: Apache-2.0
"""How views pass rows on: the same entries in another shape, order or number.

Contract: as in `rules`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from farskip_compile.passes.graph import ops
from farskip_compile.passes.graph.operator_calls import INPUT, argument, dim_of, order_of
from farskip_compile.passes.graph.operators import Effect, operator_named
from farskip_compile.verify.rows import layout as layouts
from farskip_compile.verify.rows.arguments import first_of
from farskip_compile.verify.rows.layout import RowAxis, RowLayout
from farskip_compile.verify.rows.moved import along
from farskip_compile.verify.rows.no_rule import unknown
from farskip_compile.verify.rows.state import FactsOf, RowDependence, RowFacts, about_others, worst


def view(node: fx.Node, given: FactsOf) -> RowFacts:
    """Keep the entries and their order in another shape; of bits that become other numbers nothing is known."""
    source, rows = first_of(node, given)
    value = ops.tensor(node)
    old = ops.tensor(source) if source is not None else None
    if rows.state is not RowDependence.FREE and (value is None or old is None or value.dtype != old.dtype):
        return unknown(node, given)
    if rows.state is not RowDependence.ROWS or value is None:
        return rows
    layout = layouts.reshape(rows.layout, value.shape)
    if layout is None:
        layout = layouts.reshape(layouts.loosened(rows.layout), value.shape)
        return RowFacts(RowDependence.MOVED, layout or (), decided=rows.decided, at=node)
    return RowFacts(RowDependence.ROWS, layout, rows.picked, rows.decided)


def same(node: fx.Node, given: FactsOf) -> RowFacts:
    """Keep the entries at their places."""
    return first_of(node, given)[1]


def turned(node: fx.Node, given: FactsOf) -> RowFacts:
    """Put dimensions in another order."""
    _, rows = first_of(node, given)
    if rows.state is not RowDependence.ROWS:
        return rows
    return _ordered(rows, order_of(node, operator_named(ops.op_name(node)), len(rows.layout)))


def last_two(node: fx.Node, given: FactsOf) -> RowFacts:
    """Exchange the last two dimensions."""
    _, rows = first_of(node, given)
    order = list(range(len(rows.layout)))
    return rows if rows.state is not RowDependence.ROWS else _ordered(rows, [*order[:-2], *order[:-3:-1]])


def backwards(node: fx.Node, given: FactsOf) -> RowFacts:
    """All dimensions in the opposite order."""
    _, rows = first_of(node, given)
    return rows if rows.state is not RowDependence.ROWS else _ordered(rows, range(len(rows.layout))[::-1])


def _ordered(rows: RowFacts, order: Sequence[int]) -> RowFacts:
    return RowFacts(RowDependence.ROWS, layouts.permute(rows.layout, order), rows.picked, rows.decided)


def expand(node: fx.Node, given: FactsOf) -> RowFacts:
    """Broadcast to a shape."""
    _, rows = first_of(node, given)
    value = ops.tensor(node)
    if rows.state is not RowDependence.ROWS or value is None:
        return rows
    layout = layouts.broadcast([rows.layout], value.shape)
    return unknown(node, given) if layout is None else rows._replace(layout=layout)


def resized(node: fx.Node, given: FactsOf) -> RowFacts:
    """Keep the rows, of one rank or of all: a distributed tensor and its local part."""
    _, rows = first_of(node, given)
    value = ops.tensor(node)
    if rows.state is not RowDependence.ROWS or value is None:
        return rows
    if value.dim() != len(rows.layout) or any(len(dim) > 1 for dim in rows.layout if layouts.tokens(dim)):
        return RowFacts(
            RowDependence.MOVED, along(layouts.loosened(rows.layout), (), value.shape), decided=rows.decided, at=node
        )
    tokens = [dim[0].token if dim else None for dim in rows.layout]
    layout = tuple((RowAxis(token, size),) for token, size in zip(tokens, value.shape, strict=True))
    return rows._replace(layout=layout)


def repeated(node: fx.Node, given: FactsOf) -> RowFacts:
    """Put copies one behind the other along each dimension."""
    _, rows = first_of(node, given)
    value = ops.tensor(node)
    if rows.state is not RowDependence.ROWS or value is None:
        return rows
    rest = node.args[1:]
    counts = list(rest[0]) if len(rest) == 1 and isinstance(rest[0], tuple | list) else list(rest)
    new = value.dim() - len(rows.layout)
    layout: list[tuple[RowAxis, ...]] = []
    for place, (size, count) in enumerate(zip(value.shape, counts[-value.dim() :], strict=False)):
        dim = rows.layout[place - new] if place >= new else ()
        if not layouts.tokens(dim):
            layout.append(layouts.features([size])[0])
        elif isinstance(count, int):
            layout.append(dim if count == 1 else (RowAxis(None, count), *dim))
        else:
            return RowFacts(RowDependence.MOVED, _repeated(rows, value.shape), decided=rows.decided, at=node)
    if len(layout) != value.dim():
        return RowFacts(RowDependence.UNKNOWN, at=node)
    return RowFacts(RowDependence.ROWS, tuple(layout), rows.picked, rows.decided)


def _repeated(rows: RowFacts, shape: Sequence[layouts.RowCount]) -> RowLayout:
    """Where rows are that were repeated nobody knows how often."""
    return along((*((),) * (len(shape) - len(rows.layout)), *layouts.loosened(rows.layout)), (), shape)


def as_pairs(node: fx.Node, given: FactsOf) -> RowFacts:
    """Pairs along a last dimension of size 2, and complex numbers."""
    _, rows = first_of(node, given)
    value = ops.tensor(node)
    if rows.state is not RowDependence.ROWS or value is None:
        return rows
    if value.is_complex():
        layout = rows.layout[:-1]
        return (
            RowFacts(RowDependence.MIXED, at=node) if layouts.tokens(rows.layout[-1]) else rows._replace(layout=layout)
        )
    return rows._replace(layout=(*rows.layout, layouts.features([2])[0]))


def padded(node: fx.Node, given: FactsOf) -> RowFacts:
    """Entries added at the ends of the last dimensions."""
    _, rows = first_of(node, given)
    value = ops.tensor(node)
    widths = argument(node, 1, ("pad",))
    if rows.state is not RowDependence.ROWS or value is None:
        return rows
    count = len(widths) // 2 if isinstance(widths, tuple | list) else len(rows.layout)
    first = len(rows.layout) - count
    if layouts.along(rows.layout, range(first, len(rows.layout))):
        return RowFacts(
            RowDependence.MOVED, along(layouts.loosened(rows.layout), (), value.shape), decided=rows.decided, at=node
        )
    sizes = layouts.features(value.shape)
    return RowFacts(RowDependence.ROWS, (*rows.layout[:first], *sizes[first:]), rows.picked, rows.decided)


def pieces(node: fx.Node, given: FactsOf) -> RowFacts:
    """Parts along one dimension, as a tuple."""
    _, rows = first_of(node, given)
    value = ops.fake(node)
    if rows.state is not RowDependence.ROWS or not isinstance(value, tuple | list):
        return rows if not isinstance(value, tuple | list) else _parts(rows, [rows] * len(value))
    operator = operator_named(ops.op_name(node))
    goes = operator.effect is Effect.UNBIND
    dim = dim_of(node, operator, len(rows.layout))
    if dim is None or layouts.tokens(rows.layout[dim]):
        kept = [d for place, d in enumerate(layouts.loosened(rows.layout)) if not goes or place != dim]
        layout = [along(tuple(kept), (), one.shape) for one in value]
        return _parts(rows, [RowFacts(RowDependence.MOVED, one, decided=rows.decided, at=node) for one in layout])
    members = []
    for one in value:
        left = tuple(
            d if layouts.tokens(d) else layouts.features([size])[0]
            for d, size in zip(
                (d for place, d in enumerate(rows.layout) if not goes or place != dim), one.shape, strict=True
            )
        )
        members.append(RowFacts(RowDependence.ROWS, left, rows.picked, rows.decided))
    return _parts(rows, members)


def _parts(rows: RowFacts, members: Sequence[RowFacts]) -> RowFacts:
    found = worst(members) if members else rows
    return found._replace(parts=tuple(members))


def joined(node: fx.Node, given: FactsOf) -> RowFacts:
    """Several values one behind the other (`cat`) or side by side (`stack`)."""
    parts = argument(node, 0, INPUT)
    if not isinstance(parts, tuple | list):
        return unknown(node, given)
    value = ops.tensor(node)
    rows = [given(part) for part in parts]
    found = worst(rows)
    if found.state is not RowDependence.ROWS or value is None:
        return found
    operator = operator_named(ops.op_name(node))
    dim = dim_of(node, operator, value.dim())
    if dim is None:
        return unknown(node, given)
    stack = operator.effect is Effect.STACK
    aligned: list[RowFacts] = []
    for one in rows:
        own: RowLayout = (*one.layout[:dim], (), *one.layout[dim:]) if stack else one.layout
        fits = len(own) == value.dim() and not layouts.tokens(own[dim])
        if one.state is RowDependence.ROWS and not fits:
            both = [along(layouts.loosened(r.layout), (), value.shape) for r in rows if r.state is RowDependence.ROWS]
            layout = None if stack else layouts.broadcast(both, value.shape)
            return RowFacts(RowDependence.MOVED, layout or (), decided=any(r.decided for r in rows), at=node)
        aligned.append(one._replace(layout=(*own[:dim], (), *own[dim + 1 :]) if fits else ()))
    layout = layouts.broadcast([one.layout for one in aligned if one.state is RowDependence.ROWS], value.shape)
    if layout is None:
        return RowFacts(RowDependence.MIXED, at=node)
    decided = any(r.decided for r in rows) or about_others(aligned, layout, value.shape)
    return RowFacts(RowDependence.ROWS, layout, any(r.picked for r in rows), decided)
