"""Collectives along another dimension than the first: a chunk and a cat around a collective become a move of axes.

In:    a Dynamo graph. Torch reduces, scatters and gathers along dimension 0. For another one it cuts the tensor into
       chunks and glues these together along another dimension: in front of a reduce-scatter, behind an all-gather.
Out:   the same function, bit for bit: unflatten, movedim, flatten, contiguous. Each of them is linear and has one
       input, so the residual sum can be followed through (sequence parallelism along dimension 1 of [B, T, D]).
Never: touches a cat that is not next to a collective, or that leaves a chunk out or reorders them.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from farskip_compile.passes.graph import ops


def move_axes(graph: fx.Graph) -> int:
    """Replace chunk and cat next to collectives; returns how many."""
    found = [(node, match) for node in graph.nodes if (match := _match(node)) is not None]
    for cat, (source, cut, glued, parts) in found:
        with graph.inserting_before(cat):
            split = _call(graph, source, "unflatten", cut, (parts, -1))
            moved = _call(graph, split, "movedim", cut, glued)
            flat = _call(graph, moved, "flatten", glued, glued + 1)
            whole = _call(graph, flat, "contiguous")  # a cat always is
        for node in (split, moved, flat, whole):
            node.meta = {**cat.meta, "example_value": node.meta["example_value"]}
        cat.replace_all_uses_with(whole)
    for cat, (source, *_) in found:
        pieces = [*cat.all_input_nodes]
        graph.erase_node(cat)
        for node in [*pieces, *source.users]:
            if not node.users and ops.op_name(node) in ("getitem", "chunk"):
                graph.erase_node(node)
    return len(found)


def _match(cat: fx.Node) -> tuple[fx.Node, int, int, int] | None:
    """(tensor, dimension that is cut, dimension that is glued, number of chunks), or None."""
    if ops.op_name(cat) != "cat":
        return None
    glue = cat.args[0]
    pieces = [piece for piece in glue if isinstance(piece, fx.Node)] if isinstance(glue, tuple | list) else []
    chunk = pieces[0].args[0] if pieces and ops.op_name(pieces[0]) == "getitem" else None
    if not isinstance(chunk, fx.Node) or ops.op_name(chunk) != "chunk" or not isinstance(chunk.args[0], fx.Node):
        return None
    source, chunks = chunk.args[0], ops.fake(chunk)
    if not ops.is_wait(source) and not any(ops.is_collective(user) for user in cat.users):
        return None
    in_order = [(ops.op_name(piece), piece.args) for piece in pieces] == [
        ("getitem", (chunk, index)) for index in range(len(pieces))
    ]
    value = ops.tensor(source)
    if not in_order or value is None or not isinstance(chunks, tuple | list) or len(chunks) != len(pieces):
        return None
    cut, glued = _dim(chunk, 2, value.dim()), _dim(cat, 1, value.dim())
    if cut is None or glued is None or cut == glued:
        return None
    return source, cut, glued, len(pieces)  # chunks of unequal length could not be glued along another dimension


def _dim(node: fx.Node, position: int, dims: int) -> int | None:
    """The `dim` argument of a node, counted from the front."""
    dim = node.args[position] if len(node.args) > position else node.kwargs.get("dim", 0)
    return dim % dims if isinstance(dim, int) else None


def _call(graph: fx.Graph, source: fx.Node, method: str, *args: Any) -> fx.Node:
    value = ops.tensor(source)
    assert value is not None
    node = graph.call_method(method, (source, *args))
    node.meta["example_value"] = getattr(value, method)(*args)
    return node
