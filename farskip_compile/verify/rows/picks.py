# SPDX-License-Identifier: Apache-2.0
"""How indexing and writes pass rows on: entries at places that something names.

Contract: as in `rules`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import EllipsisType
from typing import Any

import torch
from torch import fx

from farskip_compile.passes.graph import ops
from farskip_compile.passes.graph.operator_calls import INPUT, argument, dim_beside_index, dim_of, is_number
from farskip_compile.passes.graph.operators import Effect, operator_named
from farskip_compile.verify.rows import layout as layouts
from farskip_compile.verify.rows.arguments import first_of, is_inexact, others
from farskip_compile.verify.rows.layout import RowAxis, RowCount, RowLayout
from farskip_compile.verify.rows.moved import along, behind, picked_features
from farskip_compile.verify.rows.no_rule import unknown
from farskip_compile.verify.rows.state import DECISION, FREE, FactsOf, RowDependence, RowFacts, about_others, worst


def getitem(node: fx.Node, given: FactsOf) -> RowFacts:
    """A member of a tuple, or a part of a tensor."""
    source, rows = first_of(node, given)
    index = node.args[1]
    if source is None:
        return rows
    if ops.tensor(source) is None:
        if rows.parts and isinstance(index, int):
            return rows.parts[index]
        value = ops.tensor(node)
        if rows.state is RowDependence.ROWS and (value is None or value.dim() != len(rows.layout)):
            return unknown(node, given)
        return rows._replace(parts=())
    return picked(node, source, rows, index if isinstance(index, tuple | list) else (index,), given)


def indexed(node: fx.Node, given: FactsOf) -> RowFacts:
    """`aten.index`: a tensor, or None, for each dimension."""
    source, rows = first_of(node, given)
    assert source is not None
    entries = tuple(slice(None) if entry is None else entry for entry in node.args[1])  # type: ignore[union-attr]
    return picked(node, source, rows, entries, given)


def picked(node: fx.Node, source: fx.Node, rows: RowFacts, entries: Sequence[Any], given: FactsOf) -> RowFacts:
    """What `entries` pick of a tensor."""
    tensors = [entry for entry in entries if isinstance(entry, fx.Node) and ops.tensor(entry) is not None]
    chosen = worst([given(entry) for entry in tensors])
    if rows.state is not RowDependence.ROWS:
        return picked_by(rows, chosen)
    value = ops.tensor(node)
    dims = list(rows.layout)
    left: list[tuple[RowAxis, ...] | None] = []
    entries = _spread(entries, len(dims))
    place = 0
    advanced = False
    for entry in entries:
        if entry is None:
            left.append(())
            continue
        if isinstance(entry, bool) or place >= len(dims):
            advanced = True
            break
        dim = dims[place]
        place += 1
        if isinstance(entry, slice) and entry == slice(None):
            left.append(dim)
        elif layouts.tokens(dim):
            advanced = True
            break
        elif isinstance(entry, slice):
            left.append(None)
        elif not isinstance(entry, int):
            advanced = True
    left += dims[place:]
    if value is None or advanced or len(left) != value.dim():
        layout = _behind_index(entries, rows.layout, value.shape) if value is not None else ()
        return RowFacts(
            RowDependence.MOVED, layout, decided=rows.decided or chosen.state is RowDependence.DECISION, at=node
        )
    layout = tuple(
        dim if dim is not None and layouts.tokens(dim) else layouts.features([size])[0]
        for dim, size in zip(left, value.shape, strict=True)
    )
    return RowFacts(RowDependence.ROWS, layout, rows.picked, rows.decided)


def _behind_index(entries: Sequence[Any], layout: RowLayout, shape: Sequence[RowCount]) -> RowLayout:
    """The layout of what `entries` pick of rows or overwrite in them; nothing where features may be picked, too."""
    layout = layouts.loosened(layout)
    chosen = [place for place, entry in enumerate(entries) if entry != slice(None)]
    if len(chosen) == 1 and is_number(entries[chosen[0]]):
        return along((*layout[: chosen[0]], *layout[chosen[0] + 1 :]), (), shape)
    if len(chosen) == 1 and len(layout) == len(shape) and layouts.tokens(layout[chosen[0]]):
        return along(layout, (), shape)  # as many dimensions as before: an index of one dimension, or a part
    if chosen != list(range(len(chosen))):
        return ()
    tensors = [ops.tensor(entry) if isinstance(entry, fx.Node) else None for entry in entries[: len(chosen)]]
    masks = sum(one.dim() - 1 for one in tensors if one is not None and one.dtype is torch.bool)
    new = sum(entry is None for entry in entries)
    return behind(len(chosen) + masks - new, layout, shape)


def _spread(entries: Sequence[Any], dims: int) -> list[Any]:
    """`entries` with `...` written out."""
    found: list[Any] = []
    used = sum(entry is not None and not isinstance(entry, EllipsisType) for entry in entries)
    for entry in entries:
        found += [slice(None)] * (dims - used) if isinstance(entry, EllipsisType) else [entry]
    return found


def picked_by(rows: RowFacts, chosen: RowFacts) -> RowFacts:
    """What an index picks of a value that is no `ROWS`."""
    if rows.state is RowDependence.FREE and chosen.state is not RowDependence.FREE:
        return DECISION if chosen.state in (RowDependence.DECISION, RowDependence.ROWS) else chosen
    if rows.state is RowDependence.MOVED and chosen.state is RowDependence.DECISION:
        return RowFacts(RowDependence.MOVED, decided=True, at=rows.at)
    return worst([rows, chosen])


def along_dim(node: fx.Node, given: FactsOf) -> RowFacts:
    """`gather`, `take_along_dim`, `index_select`: indices along one dimension."""
    source, rows = first_of(node, given)
    chosen = worst([given(arg) for arg in others(node, source)])
    value = ops.tensor(node)
    if rows.state is not RowDependence.ROWS or value is None:
        return picked_by(rows, chosen)
    dim = dim_beside_index(node, len(rows.layout))
    if (
        dim is None
        or value.dim() != len(rows.layout)
        or layouts.tokens(rows.layout[dim])
        or not layouts.filled(rows.layout, value.shape)
    ):
        dims = range(value.dim()) if dim is None else [dim, *_own_picks(node, source, value)]
        layout = along(layouts.loosened(rows.layout), dims, value.shape)
        return RowFacts(
            RowDependence.MOVED, layout, decided=rows.decided or chosen.state is RowDependence.DECISION, at=node
        )
    layout = tuple(
        d if layouts.tokens(d) else layouts.features([size])[0]
        for d, size in zip(rows.layout, value.shape, strict=True)
    )
    strange = chosen.state is not RowDependence.FREE and about_others(
        [chosen._replace(state=DECISION.state)], layout, value.shape
    )
    return RowFacts(RowDependence.ROWS, layout, True, rows.decided or strange)


def _own_picks(node: fx.Node, source: object, value: torch.Tensor) -> list[int]:
    """The dimensions along which each entry may be picked from, or written to, a row of its own."""
    indices = [arg for arg in others(node, source) if ops.tensor(arg) is not None and not is_inexact(arg)]
    return [dim for index in indices for dim in picked_features(index, value.shape)]


def interleaved(node: fx.Node, given: FactsOf) -> RowFacts:
    """Copies of each entry side by side along one dimension."""
    source, rows = first_of(node, given)
    value = ops.tensor(node)
    if rows.state is not RowDependence.ROWS or value is None:
        return picked_by(rows, worst([given(arg) for arg in node.all_input_nodes if arg is not source]))
    count = argument(node, 1, ("repeats",))
    place = dim_of(node, operator_named(ops.op_name(node)), len(rows.layout))
    if not is_number(count) or place is None:
        decided = rows.decided or (isinstance(count, fx.Node) and given(count).state is RowDependence.DECISION)
        dims = [] if place is None else [place]
        layout = along(layouts.loosened(rows.layout), dims, value.shape) if dims else ()
        return RowFacts(RowDependence.MOVED, layout, decided=decided, at=node)
    old = rows.layout[place]
    new = (*old, RowAxis(None, count)) if layouts.tokens(old) else layouts.features([value.shape[place]])[0]
    return rows._replace(layout=(*rows.layout[:place], new, *rows.layout[place + 1 :]))


def embedded(node: fx.Node, given: FactsOf) -> RowFacts:
    """Rows of a table by an index."""
    tables = worst([given(arg) for arg in node.all_input_nodes if is_inexact(arg)])
    chosen = worst([given(arg) for arg in node.all_input_nodes if not is_inexact(arg)])
    if tables.state is RowDependence.ROWS:
        value = ops.tensor(node)
        layout = behind(1, layouts.loosened(tables.layout), value.shape) if value is not None else ()
        return RowFacts(
            RowDependence.MOVED, layout, decided=tables.decided or chosen.state is RowDependence.DECISION, at=node
        )
    return picked_by(tables, chosen)


def written(node: fx.Node, given: FactsOf) -> RowFacts:
    """A value with some places overwritten, or added to: `scatter`, `index_add`, `index_put`, `setitem`."""
    base, rows = first_of(node, given)
    return _written(node, given, rows, others(node, base))


def added(node: fx.Node, given: FactsOf) -> RowFacts:
    """What is added at places of another value, which is read for its shape alone."""
    return _written(node, given, FREE, list(_nodes((*node.args[1:], *node.kwargs.values()))))


def _nodes(args: object) -> Iterator[fx.Node]:
    if isinstance(args, fx.Node):
        yield args
    elif isinstance(args, tuple | list):
        for arg in args:
            yield from _nodes(arg)


def _written(node: fx.Node, given: FactsOf, rows: RowFacts, args: Sequence[fx.Node]) -> RowFacts:
    """What `args` write, and name the places of, in a value of which `rows` are known."""
    tensors = [arg for arg in args if ops.tensor(arg) is not None]
    sources = [given(arg) for arg in tensors if is_inexact(arg)]
    indices = [given(arg) for arg in tensors if not is_inexact(arg)]
    found = worst([rows, *sources])
    by = worst(indices)
    if found.state > RowDependence.MOVED or by.state > RowDependence.MOVED:
        return worst([found, by])
    kept = [one for one in [rows, *sources, *indices] if one.state is RowDependence.ROWS]
    if not kept and found.state is RowDependence.FREE:
        return DECISION if by.state is not RowDependence.FREE else FREE
    value = ops.tensor(node)
    if found.state <= RowDependence.ROWS and kept and value is not None and _effect(node) is Effect.PUT:
        dim = dim_beside_index(node, value.dim())
        if dim is not None and all(
            len(one.layout) == value.dim() and not layouts.along(one.layout, [dim]) for one in kept
        ):
            layout = layouts.broadcast([_any_size(one.layout) for one in kept], value.shape)
            if layout is not None and layouts.filled(layout, value.shape):
                strange = about_others([rows, *sources, *indices], layout, value.shape)
                return RowFacts(RowDependence.ROWS, layout, True, strange or any(one.decided for one in kept))
    decided = by.state is RowDependence.DECISION or any(one.decided for one in [rows, *sources])
    known = all(one.state is not RowDependence.MOVED for one in [rows, *sources])
    layout = _layout_of_written(node, kept) if known else ()
    return RowFacts(RowDependence.MOVED, layout, decided=decided, summed=True, at=node)


def _layout_of_written(node: fx.Node, kept: Sequence[RowFacts]) -> RowLayout:
    """Where rows are in a value of which some places were overwritten; `kept`: what is there now, and their index."""
    first = argument(node, 0, INPUT)
    value = ops.tensor(first) if isinstance(first, fx.Node) else None  # a call of `setitem` has no value of its own
    effect = _effect(node)
    if value is None or effect is Effect.WRITE_MASKED:
        return ()
    shape = value.shape
    where = node.args[1] if len(node.args) > 1 else None
    dims: list[int] = []
    if effect is Effect.WRITE or (effect is Effect.ADD_ALONE and isinstance(where, tuple | list)):
        entries = list(where) if isinstance(where, tuple | list) else [where]
        entries = [slice(None) if entry is None and ops.op_name(node) != "setitem" else entry for entry in entries]
        if any(isinstance(entry, EllipsisType) or entry is None for entry in entries):
            return ()
        tensors = [ops.tensor(entry) if isinstance(entry, fx.Node) else None for entry in entries]
        place = 0
        for entry, one in zip(entries, tensors, strict=True):
            width = one.dim() if one is not None and one.dtype is torch.bool else 1
            dims += range(place, place + width) if entry != slice(None) else ()
            place += width
    elif effect is not Effect.OVERWRITE:
        dim = dim_beside_index(node, len(shape)) if effect is not Effect.ADD_FIRST else 0
        if dim is None:
            return ()
        dims = [dim, *_own_picks(node, None, value)]
    fits = [one.layout for one in kept if len(one.layout) <= len(shape)]
    found = layouts.broadcast([_any_size(layouts.loosened(one)) for one in fits], shape)
    return () if found is None or len(fits) != len(kept) else along(found, dims, shape)


def _effect(node: fx.Node) -> Effect:
    return operator_named(ops.op_name(node)).effect


def _any_size(layout: RowLayout) -> RowLayout:
    return tuple(dim if layouts.tokens(dim) else () for dim in layout)
