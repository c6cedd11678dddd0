# SPDX-License-Identifier: Apache-2.0
"""Operators without a rule of their own: nothing is known of them, or what a user declared.

Contract: as in `rules`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from farskip_compile.passes.graph import effects, ops
from farskip_compile.verify.rows import layout as layouts
from farskip_compile.verify.rows.moved import behind
from farskip_compile.verify.rows.state import FREE, FactsOf, RowDependence, RowFacts, worst


def unknown(node: fx.Node, given: FactsOf) -> RowFacts:
    """Nothing is known about this operator."""
    known = worst([given(arg) for arg in node.all_input_nodes])
    return (
        known
        if known.state in (RowDependence.UNKNOWN, RowDependence.MIXED)
        else RowFacts(RowDependence.UNKNOWN, at=node)
    )


def mixes(node: fx.Node, given: FactsOf) -> RowFacts:
    """Rows meet here."""
    known = worst([given(arg) for arg in node.all_input_nodes])
    if known.state in (RowDependence.DECISION, RowDependence.UNKNOWN, RowDependence.MIXED):
        return known
    return RowFacts(RowDependence.MIXED, decided=known.decided, at=node)


def free(node: fx.Node, given: FactsOf) -> RowFacts:
    """Reads a shape or a type, no data; but the number that it fills a tensor with may be some."""
    _, *fills = node.all_input_nodes
    found = worst([given(arg) for arg in fills])
    return FREE if found.state <= RowDependence.DECISION else unknown(node, given)


def routed(node: fx.Node, given: FactsOf) -> RowFacts:
    """Experts that were chosen inside."""
    known = worst([given(arg) for arg in node.all_input_nodes])
    value = result(node)
    if known.state not in (RowDependence.ROWS, RowDependence.MOVED):
        return known
    return RowFacts(
        RowDependence.MOVED, behind(0, ((),), value.shape) if value is not None else (), decided=True, at=node
    )


def alone(node: fx.Node, given: FactsOf) -> RowFacts:
    """Each row by itself: the rows of the first argument that has some, in a result with the same rows."""
    args = [given(arg) for arg in node.all_input_nodes]
    known = worst(args)
    value = result(node)
    first = next((one for one in args if one.state is RowDependence.ROWS), None)
    if known.state is not RowDependence.ROWS or first is None or value is None or value.dim() != len(first.layout):
        return known if known.state is not RowDependence.ROWS else RowFacts(RowDependence.UNKNOWN, at=node)
    sizes = layouts.features(value.shape)
    if layouts.tokens(first.layout[-1]) or not _same_rows(args, first, value.shape):
        return RowFacts(RowDependence.MIXED, at=node)
    layout = tuple(dim if layouts.tokens(dim) else size for dim, size in zip(first.layout, sizes, strict=True))
    return RowFacts(RowDependence.ROWS, layout, decided=known.decided)


def _same_rows(args: Sequence[RowFacts], first: RowFacts, shape: Sequence[layouts.RowCount]) -> bool:
    """Whether all arguments that hold rows, and the result, hold as many, and in the same dimensions."""
    held = [[dim for dim in one.layout if layouts.tokens(dim)] for one in args if one.state is RowDependence.ROWS]
    return all(one == held[0] for one in held) and layouts.filled(first.layout, shape)


def result(node: fx.Node) -> torch.Tensor | None:
    """What an operator gives: a tensor, the first of several, or the buffer that it fills."""
    value = ops.fake(node)
    if isinstance(value, tuple | list) and value:
        value = value[0]
    if value is None:
        value = next(map(ops.tensor, effects.mutated_args(node)), None)
    return value if isinstance(value, torch.Tensor) else None
