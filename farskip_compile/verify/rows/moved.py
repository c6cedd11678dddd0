# SPDX-License-Identifier: Apache-2.0
"""Rows that were moved: where they are in a tensor, and how they are passed on.

Contract: pure functions. Rows that were picked, permuted or summed as decisions say are rows still: operators pass them
on by the rules that all rows go by, and mix them by these. Their place has an index of its own, `PICKED`, in each
dimension that one may run over. Two things are allowed to picked rows only: their sums (`summed`), by which the results
of a token's experts are put together, and a split of their index.

Algorithm: `as_rows` shows a rule picked rows as rows; `moved_again` takes what it found for picked rows again.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from farskip_compile._compat import same_dim
from farskip_compile.passes.graph import ops
from farskip_compile.passes.graph.operators import Effect, names_with
from farskip_compile.verify.rows import layout as layouts
from farskip_compile.verify.rows.layout import RowCount, RowLayout, index_of
from farskip_compile.verify.rows.state import FactsOf, RowDependence, RowFacts

BROADCASTS = names_with(Effect.REPEAT, Effect.EXPAND)
SUMS = names_with(Effect.SUM)


def as_rows(given: FactsOf) -> FactsOf:
    """Picked rows whose places are known are passed on as rows are."""

    def read(arg: object) -> RowFacts:
        return _shown(given(arg))

    return read


def _shown(found: RowFacts) -> RowFacts:
    if found.state is not RowDependence.MOVED or not found.layout:
        return found
    return found._replace(state=RowDependence.ROWS, parts=tuple(map(_shown, found.parts)))


def moved_again(node: fx.Node, found: RowFacts, args: Sequence[RowFacts]) -> RowFacts:
    """What a rule found of arguments of which some are picked rows."""
    moved = [one for one in args if one.state is RowDependence.MOVED]
    if found.state is RowDependence.ROWS and index_of(found.layout) and not all(index_of(one.layout) for one in moved):
        return RowFacts(RowDependence.MIXED, at=node)  # one value, made of all picked rows, is given to each row
    return _back(found, moved[0].at, any(one.summed for one in moved))


def _back(found: RowFacts, at: fx.Node | None, summed: bool) -> RowFacts:
    if found.state is not RowDependence.ROWS:
        return found
    parts = tuple(_back(part, at, summed) for part in found.parts)
    return found._replace(state=RowDependence.MOVED, at=at, parts=parts, summed=summed or found.summed)


def covers(layout: RowLayout, result: RowLayout) -> bool:
    """Whether a value has an index of rows in all dimensions, counted from the last, in which `result` has one."""
    missing = len(result) - len(layout)
    return not index_of(result[: max(missing, 0)]) and all(
        layouts.tokens(own) or not layouts.tokens(dim)
        for own, dim in zip(layout[max(-missing, 0) :], result[max(missing, 0) :], strict=True)
    )


def are_summed(node: fx.Node, rows: RowFacts, dims: Sequence[int]) -> bool:
    """Whether `node` sums rows along `dims`, and all that are added there are picked ones."""
    name = ops.op_name(node)
    return name in SUMS and all(layouts.is_picked(rows.layout[dim]) for dim in dims if index_of([rows.layout[dim]]))


def picked_features(node: fx.Node, shape: Sequence[RowCount]) -> list[int]:
    """The dimensions along which the entries of an index may pick different rows: those that it was not broadcast to.

    An index of a `gather` has a place for each feature, and picks whole rows only if these are all the same.
    """
    value = ops.tensor(node)
    if value is None or value.dim() != len(shape):
        return []
    source = next((arg for arg in node.all_input_nodes if ops.tensor(arg) is not None), None)
    before = ops.tensor(source) if source is not None and ops.op_name(node) in BROADCASTS else None
    if before is not None and before.dim() != value.dim():
        before = None
    return [
        dim
        for dim in range(value.dim())
        if not same_dim(value.stride(dim), 0) and (before is None or not same_dim(before.shape[dim], 1))
    ]


def along(layout: RowLayout, dims: Sequence[int], shape: Sequence[RowCount]) -> RowLayout:
    """The layout of a value of `shape` with picked rows along `dims`, and rows elsewhere as `layout` says."""
    if len(layout) != len(shape):
        return ()
    sizes = layouts.features(shape)
    return tuple(
        layouts.picked(shape[place])
        if place in dims or layouts.is_picked(dim)
        else dim
        if layouts.tokens(dim)
        else sizes[place]
        for place, dim in enumerate(layout)
    )


def behind(count: int, layout: RowLayout, shape: Sequence[RowCount]) -> RowLayout:
    """The layout of a value of `shape` whose last dimensions are those of `layout` from `count` on, behind picked
    rows."""
    left = layout[count:]
    new = len(shape) - len(left)
    return along((*((),) * new, *left), range(new), shape) if new >= 0 else ()
