# SPDX-License-Identifier: Apache-2.0
"""What must be there once for each piece, if tokens are gathered, and sums over ranks scattered: all between the two.

In:    a Dynamo graph.
Out:   a `Region` for each exchange by all-gather and reduce-scatter; of one that has none, the reason.
Never: says that a region may be cut: that is proved of the pieces (`farskip_compile.verify.tokens`).

Algorithm: inside are the gathers of tokens, what is made of them up to the reduce-scatter, and its wait. Piece k
gathers the k-th part of each rank's tokens, so its rows are those of all ranks, too; its reduce-scatter brings back the
k-th part of this rank's. What is gathered there besides (weights that are spread) stays. Refused by name are operators
in which tokens meet, or give way to others (`drops`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import fx

from farskip_compile.passes.graph import comms, ops
from farskip_compile.passes.pieces.gathered import Gathered
from farskip_compile.passes.pieces.rules import NotSeparableError
from farskip_compile.passes.pieces.tokens.drops import refuse_drops
from farskip_compile.passes.pieces.tokens.facts import Window
from farskip_compile.passes.pieces.tokens.order import MADE


def inside_of(window: Window, exchange: Gathered, waits: Sequence[fx.Node]) -> tuple[list[fx.Node], set[fx.Node], int]:
    """The launches of `exchange`, all that is there once for each piece, and how many rows are gathered; `waits` are
    those of its reduce-scatter.

    Raises:
        NotSeparableError: tokens meet, or give way to others.
    """
    gathers = [node for node in exchange.gathers if node in window.facts.data]
    if not gathers:
        raise NotSeparableError(exchange.launch, "no tokens are gathered")
    rows = _rows_gathered(gathers, exchange.scatter)
    after = window.after(gathers)
    inside = {node for node in exchange.between if node in after} | {*gathers, exchange.scatter, *waits}
    made = {node for node in exchange.between if ops.op_name(node) in MADE and _counts(node, rows)} - inside
    nodes = window.ordered(inside)
    stranger = next(
        (node for node in nodes if comms.is_collective(node) and node not in (*gathers, exchange.scatter)), None
    )
    if stranger is not None:
        raise NotSeparableError(stranger, "it communicates between the gather of tokens and their reduce-scatter")
    meeting = next((node for node in nodes if ops.is_attention(node) or ops.is_scan(node)), None)
    if meeting is not None:
        raise NotSeparableError(meeting, "tokens meet in it, between their gather and the reduce-scatter")
    refuse_drops(nodes, rows)
    return [*gathers, exchange.scatter], inside | made, rows


def _rows_gathered(gathers: Collection[fx.Node], scatter: fx.Node) -> int:
    """How many rows all gathers have, and the sums that are scattered."""
    found: set[int] = set()
    for launch in (*gathers, scatter):
        value = ops.tensor(launch.args[0] if launch is scatter else launch)  # type: ignore[arg-type]
        size = value.shape[0] if value is not None and value.dim() else None
        if not isinstance(size, int):
            raise NotSeparableError(launch, "the number of tokens is a symbol")
        found.add(size)
        if len(found) > 1:
            raise NotSeparableError(launch, f"its rows, {size}, are not as many as were gathered of tokens")
    return found.pop()


def _counts(node: fx.Node, rows: int) -> bool:
    """Whether a new tensor, of no other one, has an entry for each row."""
    value = ops.tensor(node)
    first = value.shape[0] if value is not None and value.dim() and not node.all_input_nodes else 0
    return isinstance(first, int) and first >= rows and first % rows <= 1
