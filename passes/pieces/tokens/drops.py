# SPDX-License-Identifier: Apache-2.0
"""Where some rows are given up for others, for want of room: then tokens can't be cut.

In:    what is made of rows of which a rank has all, gathered ones or those of slices, in order; how many they are.
Out:   an error that names the first operator with too little room for all rows.
Never: is what makes a cut right. That is the proof (`farskip_compile.verify.tokens`), which draws choices that fill
       every room; this only says it earlier, and where.

Algorithm: a running sum along rows gives each row of an expert its number. Where such numbers are compared with less
than there are rows, later ones are dropped. So they are where the first of some rows are taken.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from farskip_compile.passes.graph import ops
from farskip_compile.passes.graph.operator_calls import dims_of
from farskip_compile.passes.graph.operators import operator_named
from farskip_compile.passes.graph.walk import spread
from farskip_compile.passes.pieces.rules import NotSeparableError

KEPT = {"lt": 0, "ge": 0, "le": 1, "gt": 1, "clamp": 1, "clamp_max": 1, "clip": 1, "minimum": 1}
"""How many more rows have a number that passes, than the number that they are compared with."""


def refuse_drops(nodes: Sequence[fx.Node], rows: int) -> None:
    """Check that there is room for all rows.

    Raises:
        NotSeparableError: of whole tokens other rows are dropped than of parts.
    """
    numbered = spread(nodes, lambda node: _numbers_rows(node, rows), _whole_numbers)
    for node in nodes:
        more = KEPT.get(ops.op_name(node))
        if more is not None and not numbered.isdisjoint(node.all_input_nodes):
            _check_room(node, rows, more)
        value, first = ops.tensor(node), ops.tensor(node.all_input_nodes[0]) if node.all_input_nodes else None
        if ops.op_name(node) not in ("getitem", "narrow") or value is None or first is None:
            continue
        if ops.op_name(node) == "getitem" and not _is_slice(node.args[1]):
            continue
        had, has = first.shape[0] if first.dim() else 0, value.shape[0] if value.dim() else 0
        if isinstance(had, int) and isinstance(has, int) and had >= rows and has < had - had % rows:
            raise NotSeparableError(node, f"{has} of {had} rows are taken, and of parts of the tokens other ones")


def _check_room(node: fx.Node, rows: int, more: int) -> None:
    for limit in (*node.args, *node.kwargs.values()):
        if type(limit) is int and limit > 0 and limit + more < rows:
            reason = f"experts have room for {limit + more} of {rows} rows, and parts of the tokens drop other ones"
            raise NotSeparableError(node, reason)


def _numbers_rows(node: fx.Node, rows: int) -> bool:
    value = ops.tensor(node)
    if ops.op_name(node) != "cumsum" or value is None or value.is_floating_point():
        return False
    return any(int(value.shape[dim]) % rows == 0 for dim in dims_of(node, operator_named("cumsum"), value.dim()))


def _whole_numbers(node: fx.Node) -> list[fx.Node]:
    """Arguments, for numbers: what is picked or written by them has none."""
    return [] if ops.is_floating(node) else list(node.all_input_nodes)


def _is_slice(index: object) -> bool:
    first = index[0] if isinstance(index, tuple) and index else index
    return isinstance(first, slice)
