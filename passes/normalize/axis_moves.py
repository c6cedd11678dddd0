# SPDX-License-Identifier: Apache-2.0
"""Collectives along another dimension than the first: a chunk and a cat around a collective become a move of axes.

In:    a Dynamo graph. Torch reduces, scatters and gathers along dimension 0. For another one it cuts the tensor into
       chunks and concatenates these along another dimension: before a reduce-scatter, after an all-gather.
Out:   the same function, bit for bit: unflatten, movedim, flatten, contiguous. Each of them is linear and has one
       input, so the residual sum can be followed through (sequence parallelism along dimension 1 of [B, T, D]).
Never: touches a cat that is not next to a collective, or that omits or reorders chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from farskip_compile.passes.graph import comms, ops


@dataclass(frozen=True)
class _AxisMove:
    """A cat of all chunks of a tensor, along another dimension."""

    cat: fx.Node
    source: fx.Node
    cut: int
    """The dimension that is cut into chunks."""
    joined: int
    """The dimension along which these are concatenated."""
    chunks: int


def move_axes(graph: fx.Graph) -> int:
    """Replace chunk and cat next to collectives; returns how many."""
    joins = ops.calls(graph, lambda node: ops.op_name(node) == "cat")
    found = [move for node in joins if (move := _match(node)) is not None]
    for move in found:
        with graph.inserting_before(move.cat):
            split = _call(graph, move.source, "unflatten", move.cut, (move.chunks, -1))
            moved = _call(graph, split, "movedim", move.cut, move.joined)
            flat = _call(graph, moved, "flatten", move.joined, move.joined + 1)
            whole = _call(graph, flat, "contiguous")  # a cat always is
        for node in (split, moved, flat, whole):
            node.meta = {**move.cat.meta, "example_value": node.meta["example_value"]}
        move.cat.replace_all_uses_with(whole)
    for move in found:
        pieces = [*move.cat.all_input_nodes]
        graph.erase_node(move.cat)
        for node in [*pieces, *move.source.users]:
            if not node.users and ops.op_name(node) in ("getitem", "chunk"):
                graph.erase_node(node)
    return len(found)


def _match(cat: fx.Node) -> _AxisMove | None:
    pieces = cat.args[0] if cat.args and isinstance(cat.args[0], tuple | list) else []
    chunk = _chunk_of(pieces)
    if chunk is None:
        return None
    source = chunk.args[0]
    if not isinstance(source, fx.Node):
        return None
    if not comms.is_wait(source) and not any(comms.is_collective(user) for user in cat.users):
        return None
    value = ops.tensor(source)
    if value is None:
        return None
    cut, joined = _dim(chunk, 2, value.dim()), _dim(cat, 1, value.dim())
    if cut is None or joined is None or cut == joined:
        return None
    return _AxisMove(cat, source, cut, joined, len(pieces))  # a cat along another dimension has equal chunks


def _chunk_of(pieces: Sequence[object]) -> fx.Node | None:
    """The `chunk` whose results `pieces` are: all of them, in order."""
    first = pieces[0] if pieces else None
    chunk = first.args[0] if isinstance(first, fx.Node) and ops.op_name(first) == "getitem" else None
    if not isinstance(chunk, fx.Node) or ops.op_name(chunk) != "chunk":
        return None
    for index, piece in enumerate(pieces):
        if not isinstance(piece, fx.Node) or ops.op_name(piece) != "getitem" or piece.args != (chunk, index):
            return None
    chunks = ops.fake(chunk)
    return chunk if isinstance(chunks, tuple | list) and len(chunks) == len(pieces) else None


def _dim(node: fx.Node, position: int, dims: int) -> int | None:
    """The `dim` argument of a node, as a number from 0."""
    dim = node.args[position] if len(node.args) > position else node.kwargs.get("dim", 0)
    return dim % dims if isinstance(dim, int) else None


def _call(graph: fx.Graph, source: fx.Node, method: str, *args: Any) -> fx.Node:
    value = ops.tensor(source)
    assert value is not None
    node = graph.call_method(method, (source, *args))
    node.meta["example_value"] = getattr(value, method)(*args)
    return node
