# SPDX-License-Identifier: Apache-2.0
"""How operators pass rows on that work at each place by itself, or along dimensions.

Contract: as in `rules`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from farskip_compile._compat import same_dim
from farskip_compile.passes.graph import ops
from farskip_compile.passes.graph.operator_calls import argument, dims_of
from farskip_compile.passes.graph.operators import Effect, operator_named
from farskip_compile.verify.rows import layout as layouts
from farskip_compile.verify.rows.arguments import first_of, is_data, others
from farskip_compile.verify.rows.layout import RowLayout
from farskip_compile.verify.rows.moved import along, are_summed, covers
from farskip_compile.verify.rows.no_rule import result, unknown
from farskip_compile.verify.rows.state import (
    FactsOf,
    RowDependence,
    RowFacts,
    about_others,
    decision_of,
    worst,
)


def pointwise(node: fx.Node, given: FactsOf) -> RowFacts:
    """Entries at one place, after broadcasting, make the entry there."""
    value = ops.tensor(node)
    if value is None:
        return unknown(node, given)
    args = [(arg, given(arg)) for arg in node.all_input_nodes if ops.tensor(arg) is not None]
    if len(args) == 1 and ops.same_shape(ops.tensor(args[0][0]), value):  # type: ignore[arg-type]
        return args[0][1]
    found = worst([rows for _, rows in args])
    if found.state is not RowDependence.ROWS:
        return found
    rows = [one for _, one in args if one.state is RowDependence.ROWS]
    layout = layouts.broadcast([one.layout for one in rows], value.shape)
    if layout is None:
        return RowFacts(RowDependence.MIXED, at=node)
    if any(one.summed and not covers(one.layout, layout) for one in rows):
        return RowFacts(RowDependence.MIXED, at=node)
    scales = ops.op_name(node) not in ("add", "sub", "add_", "sub_") and is_data(value)  # a comparison scales nothing
    gates = [(arg, one) for arg, one in args if scales and (one.picked or one.state is RowDependence.DECISION)]
    decided = (
        any(one.decided for one in rows)
        or any(_is_for_whole_rows(arg, value.shape, layout) for arg, _ in gates)
        or about_others([one for _, one in args], layout, value.shape)
    )
    return RowFacts(RowDependence.ROWS, layout, bool(gates) or any(one.picked for one in rows), decided)


def _is_for_whole_rows(arg: fx.Node, shape: Sequence[Any], layout: RowLayout) -> bool:
    """Whether `arg` is broadcast along a dimension of the result that is no index of rows."""
    value = ops.tensor(arg)
    assert value is not None
    shift = len(shape) - value.dim()
    for place, size in enumerate(shape):
        if layouts.tokens(layout[place]) or same_dim(size, 1):
            continue
        if place < shift or same_dim(value.shape[place - shift], 1):
            return True
    return False


def one_hot(node: fx.Node, given: FactsOf) -> RowFacts:
    """Add a last dimension."""
    _, rows = first_of(node, given)
    value = ops.tensor(node)
    if rows.state is not RowDependence.ROWS or value is None:
        return rows
    return RowFacts(RowDependence.ROWS, (*rows.layout, *layouts.features(value.shape[-1:])), rows.picked, rows.decided)


def meet(node: fx.Node, given: FactsOf) -> RowFacts:
    """Let entries meet along dimensions, which stay: a softmax, a sort, the best ones."""
    operator = operator_named(ops.op_name(node))
    picks = operator.effect is Effect.BEST
    _, rows = first_of(node, given)
    if rows.state is not RowDependence.ROWS:
        return _tuple(node, _not_first(node, given))
    dims = dims_of(node, operator, len(rows.layout))
    if layouts.along(rows.layout, dims):
        return _tuple(node, _chosen(node, rows) if picks else RowFacts(RowDependence.MIXED, at=node))
    return _tuple(node, _resized(node, rows, picked=rows.picked or picks))


def _chosen(node: fx.Node, rows: RowFacts) -> RowFacts:
    """Rows that are chosen by their own entries; each feature may choose others."""
    value = result(node)
    layout = along(rows.layout, range(value.dim()), value.shape) if value is not None else ()
    return RowFacts(RowDependence.MOVED, layout, decided=True, at=node)


def _resized(node: fx.Node, rows: RowFacts, *, picked: bool) -> RowFacts:
    """`rows`, with features of other sizes."""
    value = result(node)
    if value is None or value.dim() != len(rows.layout):
        return RowFacts(RowDependence.UNKNOWN, at=node)
    layout = tuple(
        dim if layouts.tokens(dim) else layouts.features([size])[0]
        for dim, size in zip(rows.layout, value.shape, strict=True)
    )
    return rows._replace(layout=layout, picked=picked)


def _tuple(node: fx.Node, rows: RowFacts) -> RowFacts:
    """`rows` for each member, if the value of `node` is a tuple; members that are integers are decisions."""
    value = ops.fake(node)
    if not isinstance(value, tuple | list):
        return rows
    decision = decision_of(rows)
    parts = [
        decision if isinstance(one, torch.Tensor) and not is_data(one) and rows.state > RowDependence.FREE else rows
        for one in value
    ]
    return rows._replace(parts=tuple(parts))


def _not_first(node: fx.Node, given: FactsOf) -> RowFacts:
    """Of an operator whose first argument holds no rows: they are in another one, of which nothing is known."""
    found = worst([given(arg) for arg in node.all_input_nodes])
    return unknown(node, given) if found.state is RowDependence.ROWS else found


def reduced(node: fx.Node, given: FactsOf) -> RowFacts:
    """Let entries meet along dimensions, which go: a sum, a maximum; or take one that all of them choose."""
    operator = operator_named(ops.op_name(node))
    source, rows = first_of(node, given)
    if any(ops.tensor(arg) is not None for arg in others(node, source)):
        return pointwise(node, given)  # the larger of two values
    if rows.state is not RowDependence.ROWS:
        return _tuple(node, _not_first(node, given))
    picks = operator.effect is Effect.TAKE_BEST
    dims = dims_of(node, operator, len(rows.layout))
    added = layouts.along(rows.layout, dims)
    if added and picks:
        return _tuple(node, _chosen(node, rows))
    if added and not are_summed(node, rows, dims):
        return _tuple(node, RowFacts(RowDependence.MIXED, at=node))
    value = result(node)
    if value is None:
        return unknown(node, given)
    if value.dim() == len(rows.layout):
        layout = tuple(() if place in dims else dim for place, dim in enumerate(rows.layout))
    else:
        layout = tuple(dim for place, dim in enumerate(rows.layout) if place not in dims)
    return _tuple(node, RowFacts(RowDependence.ROWS, layout, rows.picked or picks, rows.decided, added or rows.summed))


def normalises(node: fx.Node, given: FactsOf) -> RowFacts:
    """Normalise over the last dimensions."""
    source, rows = first_of(node, given)
    if rows.state is not RowDependence.ROWS or any(
        given(arg).state is not RowDependence.FREE for arg in others(node, source)
    ):
        return _tuple(node, _not_first(node, given))
    shape = argument(node, 1, ("normalized_shape",))
    count = len(shape) if isinstance(shape, tuple | list) else len(rows.layout)
    if layouts.along(rows.layout, range(len(rows.layout) - count, len(rows.layout))):
        return RowFacts(RowDependence.MIXED, at=node)
    return _tuple(node, rows)
