# SPDX-License-Identifier: Apache-2.0
"""Where the rows of the stream begin.

Contract: given the base and the residual values, as claims; shares no code with detection.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import fx

from farskip_compile._compat import same_dim
from farskip_compile.passes.graph import ops
from farskip_compile.passes.graph.walk import walk_back
from farskip_compile.verify.rows.layout import places
from farskip_compile.verify.rows.read import begin, read_rows
from farskip_compile.verify.rows.rules import is_state
from farskip_compile.verify.rows.state import RowDependence, RowFacts


def rows_begin(graph: fx.Graph, base: fx.Node, values: Collection[fx.Node]) -> dict[fx.Node, RowFacts]:
    """Where rows begin: at the residual values, and at the first value before the base that has the same rows.

    A stream may have dimensions beside those of the tokens, such as several streams that are mixed: the dimensions that
    the first value has tell them apart.
    """
    first = first_with_rows_of(graph, base)
    if first is None or first is base:
        return begin(values)
    start = begin([first])
    before = set(walk_back([base]))
    found = read_rows([node for node in graph.nodes if node in before], start)[base]
    indices = len(places(found.layout)) if found.state is RowDependence.ROWS and places(found.layout) else None
    rank = len(shape_of(base))
    same = [value for value in values if len(shape_of(value)) == rank]
    return {**begin(values), **begin(same, indices), **start}


def first_with_rows_of(graph: fx.Graph, base: fx.Node) -> fx.Node | None:
    """The first floating value that `base` is computed from, and whose rows it has."""
    shape = shape_of(base)
    before = set(walk_back([base]))
    least = min(3, len(shape))
    for node in graph.nodes:
        if node not in before or not ops.is_floating(node) or is_state(node):
            continue
        own = shape_of(node)
        if least <= len(own) <= len(shape) and all(same_dim(a, b) for a, b in zip(own[:-1], shape, strict=False)):
            return node
    return None


def shape_of(node: fx.Node) -> Sequence[int | torch.SymInt]:
    """The shape of a tensor."""
    value = ops.tensor(node)
    assert value is not None
    return value.shape
