"""Which bytes remain when Inductor has fused pointwise operators and reductions.

In:    a node of an ATen graph.
Out:   bytes that it still reads and writes.
Never: looks further than the node's inputs and readers: a rule of thumb, made for a graph that is not lowered yet.

A fusible operator takes what another fusible operator makes from registers, so it reads nothing from it; and it writes
nothing unless something else reads its result: a matrix product, a collective, the end of the graph. Views in between
do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import fx

from farskip_compile._compat import OpOverload
from farskip_compile.costs.memory import LOOKUPS, is_free, node_bytes, traffic
from farskip_compile.passes.graph import ops

Size = Callable[[int | torch.SymInt], int]

FUSIBLE = LOOKUPS | frozenset(
    [
        "_softmax",
        "_to_copy",
        "arange",
        "cat",
        "constant_pad_nd",
        "full",
        "iota",
        "rand",
        "randn",
        "scalar_tensor",
        "select_scatter",
        "slice_scatter",
        "inductor_lookup_seed",
        "inductor_random",
    ]
)
"""Operators that Inductor lowers to loops although torch does not tag them so."""


def is_fusible(node: fx.Node) -> bool:
    """Whether Inductor lowers `node` to a loop that may fuse with others."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return False
    tags = node.target.tags
    return torch.Tag.pointwise in tags or torch.Tag.reduction in tags or ops.op_name(node) in FUSIBLE


def fused_traffic(node: fx.Node, size: Size) -> tuple[int, int]:
    """Bytes that `node` still (reads, writes) after fusion; as they are if it can't be fused."""
    read, written = traffic(node, size)
    if not is_fusible(node):
        return read, written
    table = node.args[0] if ops.op_name(node) in LOOKUPS else None
    saved = sum(
        node_bytes(source, size)
        for source in node.all_input_nodes
        if source is not table and is_fusible(_behind_views(source))
    )
    return max(read - saved, 0), 0 if all(is_fusible(reader) for reader in readers(node)) else written


def _behind_views(node: fx.Node) -> fx.Node:
    while node.op == "call_function" and is_free(node) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def readers(node: fx.Node) -> Iterator[fx.Node]:
    """What reads the memory of `node`, through views."""
    for user in node.users:
        if user.op == "call_function" and is_free(user):
            yield from readers(user)
        else:
            yield user
