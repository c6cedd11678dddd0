"""How indexing and writes pass rows on: entries at places that something names.

Contract: as in `rules`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import EllipsisType
from typing import Any

from torch import fx

from farskip_compile.passes.graph import ops
from farskip_compile.verify.rows import layout as layouts
from farskip_compile.verify.rows.layout import Axis, Layout
from farskip_compile.verify.rows.state import DECISION, FREE, Given, Rows, State, merged, worst
from farskip_compile.verify.rows.views import first_of


def getitem(node: fx.Node, given: Given) -> Rows:
    """A member of a tuple, or a part of a tensor."""
    source, rows = first_of(node, given)
    index = node.args[1]
    if source is None:
        return rows
    if ops.tensor(source) is None:
        if rows.parts and isinstance(index, int):
            return rows.parts[index]
        return Rows(rows.state, rows.layout, rows.picked, rows.decided, rows.at)
    return picked(node, source, rows, index if isinstance(index, tuple | list) else (index,), given)


def indexed(node: fx.Node, given: Given) -> Rows:
    """`aten.index`: a tensor, or None, for each dimension."""
    source, rows = first_of(node, given)
    assert source is not None
    entries = tuple(slice(None) if entry is None else entry for entry in node.args[1])  # type: ignore[union-attr]
    return picked(node, source, rows, entries, given)


def picked(node: fx.Node, source: fx.Node, rows: Rows, entries: Sequence[Any], given: Given) -> Rows:
    """What `entries` pick of a tensor."""
    tensors = [entry for entry in entries if isinstance(entry, fx.Node) and ops.tensor(entry) is not None]
    chosen = worst([given(entry) for entry in tensors])
    if rows.state is not State.ROWS:
        return picked_by(rows, chosen)
    value = ops.tensor(node)
    dims = list(rows.layout)
    left: list[tuple[Axis, ...] | None] = []
    entries = _spread(entries, len(dims))
    place = 0
    advanced = False
    for entry in entries:
        if entry is None:
            left.append(())
            continue
        dim = dims[place]
        place += 1
        if isinstance(entry, slice) and entry == slice(None):
            left.append(dim)
        elif layouts.tokens(dim):
            return Rows(State.MOVED, decided=rows.decided or chosen.state is State.DECISION, at=node)
        elif isinstance(entry, slice):
            left.append(None)
        elif not isinstance(entry, int):
            advanced = True
    left += dims[place:]
    if value is None or advanced or len(left) != value.dim():
        return Rows(State.MOVED, decided=rows.decided or chosen.state is State.DECISION, at=node)
    layout = tuple(
        dim if dim is not None and layouts.tokens(dim) else layouts.features([size])[0]
        for dim, size in zip(left, value.shape, strict=True)
    )
    return Rows(State.ROWS, layout, rows.picked, rows.decided)


def _spread(entries: Sequence[Any], dims: int) -> list[Any]:
    """`entries` with `...` written out."""
    found: list[Any] = []
    used = sum(entry is not None and not isinstance(entry, EllipsisType) for entry in entries)
    for entry in entries:
        found += [slice(None)] * (dims - used) if isinstance(entry, EllipsisType) else [entry]
    return found


def picked_by(rows: Rows, chosen: Rows) -> Rows:
    """What an index picks of a value that is no `ROWS`."""
    if rows.state is State.FREE and chosen.state is not State.FREE:
        return DECISION if chosen.state in (State.DECISION, State.ROWS) else chosen
    if rows.state is State.MOVED and chosen.state is State.DECISION:
        return Rows(State.MOVED, decided=True, at=rows.at)
    return worst([rows, chosen])


def along_dim(node: fx.Node, given: Given) -> Rows:
    """`gather`, `take_along_dim`, `index_select`: indices along one dimension."""
    source, rows = first_of(node, given)
    numbers = [arg for arg in (*node.args[1:], node.kwargs.get("dim")) if isinstance(arg, int)]
    index = next((arg for arg in node.all_input_nodes if arg is not source), None)
    chosen = given(index) if index is not None else FREE
    value = ops.tensor(node)
    if rows.state is not State.ROWS or value is None or not numbers:
        return picked_by(rows, chosen)
    dim = numbers[0] % len(rows.layout)
    if layouts.tokens(rows.layout[dim]):
        return Rows(State.MOVED, decided=chosen.state is State.DECISION, at=node)
    layout = tuple(
        d if layouts.tokens(d) else layouts.features([size])[0]
        for d, size in zip(rows.layout, value.shape, strict=True)
    )
    return Rows(State.ROWS, layout, True, rows.decided)


def interleaved(node: fx.Node, given: Given) -> Rows:
    """Copies of each entry side by side along one dimension."""
    source, rows = first_of(node, given)
    value = ops.tensor(node)
    if rows.state is not State.ROWS or value is None:
        return picked_by(rows, worst([given(arg) for arg in node.all_input_nodes if arg is not source]))
    rest = list(node.args[1:])
    count = rest[0] if rest else node.kwargs.get("repeats")
    dim = rest[1] if len(rest) > 1 else node.kwargs.get("dim")
    if not isinstance(count, int) or not isinstance(dim, int):
        decided = rows.decided or (isinstance(count, fx.Node) and given(count).state is State.DECISION)
        return Rows(State.MOVED, decided=decided, at=node)
    place = dim % len(rows.layout)
    old = rows.layout[place]
    new = (*old, Axis(None, count)) if layouts.tokens(old) else layouts.features([value.shape[place]])[0]
    return replace(rows, layout=(*rows.layout[:place], new, *rows.layout[place + 1 :]))


def embedded(node: fx.Node, given: Given) -> Rows:
    """Rows of a table by an index."""
    return merged([picked_by(FREE, given(arg)) for arg in node.all_input_nodes], node)


def written(node: fx.Node, given: Given) -> Rows:
    """A value with some places overwritten, or added to: `scatter`, `index_add`, `index_put`, `setitem`."""
    base, rows = first_of(node, given)
    others = [arg for arg in node.all_input_nodes if arg is not base]
    sources = [given(arg) for arg in others if ops.tensor(arg) is not None and ops.is_floating(arg)]
    indices = [given(arg) for arg in others if ops.tensor(arg) is not None and not ops.is_floating(arg)]
    found = worst([rows, *sources])
    by = worst(indices)
    if found.state > State.MOVED or by.state > State.MOVED:
        return worst([found, by])
    if found.state is State.FREE:
        return DECISION if by.state is not State.FREE else FREE
    numbers = [arg for arg in (*node.args[1:], node.kwargs.get("dim")) if isinstance(arg, int)]
    kept = [one for one in [rows, *sources] if one.state is State.ROWS]
    value = ops.tensor(node)
    if found.state is State.ROWS and numbers and value is not None and ops.op_name(node).startswith("scatter"):
        dim = numbers[0] % value.dim()
        if not any(layouts.along(one.layout, [dim]) for one in kept):
            layout = layouts.broadcast([_any_size(one.layout) for one in kept], value.shape)
            if layout is not None:
                return Rows(State.ROWS, layout, True, any(one.decided for one in kept))
    return Rows(State.MOVED, decided=by.state is State.DECISION or any(o.decided for o in [rows, *sources]), at=node)


def added(node: fx.Node, given: Given) -> Rows:
    """What is added at places of another value, which is read for its shape alone."""
    base = node.args[0]
    return written(node, lambda arg: FREE if arg is base else given(arg))


def _any_size(layout: Layout) -> Layout:
    return tuple(dim if layouts.tokens(dim) else () for dim in layout)
