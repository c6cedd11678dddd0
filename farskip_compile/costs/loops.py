"""What a fused kernel of Inductor does, beside the bytes it moves: arithmetic, and access across the memory's order.

In:    for each loop that was fused, the nodes of the ATen graph behind it.
Out:   its elementwise operations, and how much of its traffic is transposed.
Never: looks at generated code.

A node that is computed inside of a loop is computed for every step of the loop, also where its own value is smaller:
a rotary table, or the mask in front of a softmax, again for each head. And each loop that reads it computes it again.
Only what is equal along the innermost dimension is computed once for a row of it: the factor of a norm, a row's index.
So the operations of a loop are those of its nodes for one step, times the steps of its largest node, or times its rows.
Loops of one kernel that run over the same steps and share nodes are one loop, which computes these once; but a
reduction must be through before its result is read, so that reductions and other loops stay apart. Each loop has one
operation more, which stands for its loads and stores: a softmax passes over its rows four times.

A loop transposes if a view behind it moves the innermost dimension, and it reads or writes a tensor that has that
dimension apart: the last one is then not the one that lies together in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import fx

from farskip_compile._compat import OpOverload
from farskip_compile.costs.elementwise import weight
from farskip_compile.costs.memory import tensor_bytes, tensors_of
from farskip_compile.passes.graph import ops

Size = Callable[[int | torch.SymInt], int]

TRANSPOSES = ("permute", "transpose", "t")


def kernel_ops(loops: Sequence[Sequence[fx.Node]], size: Size) -> int:
    """Elementwise operations of a kernel that was fused from `loops`."""
    merged: list[tuple[tuple[bool, int], dict[fx.Node, None]]] = []
    for nodes in loops:
        computed = dict.fromkeys(node for node in nodes if weight(node))
        if not computed:
            continue
        key = any(map(_is_reduction, computed)), max(prod(_steps(node, size)) for node in computed)
        shared = next(
            (others for kind, others in merged if kind == key and not others.keys().isdisjoint(computed)), None
        )
        if shared is None:
            merged.append((key, computed))
        else:
            shared.update(computed)
    return sum(loop_ops(list(nodes), size) + steps for (_, steps), nodes in merged)


def loop_ops(nodes: Sequence[fx.Node], size: Size) -> int:
    """Elementwise operations of the loop that computes `nodes`."""
    shapes = {node: _steps(node, size) for node in nodes if weight(node)}
    if not shapes:
        return 0
    largest = max(shapes.values(), key=prod)
    steps, row = prod(largest), max(largest[-1], 1) if largest else 1
    return sum(
        weight(node) * (steps if prod(shape) == steps or (shape and shape[-1] == row) else -(-steps // row))
        for node, shape in shapes.items()
    )


def transposed_bytes(nodes: Sequence[fx.Node], size: Size) -> int:
    """Bytes that the loop behind `nodes` reads or writes across the memory's order; both sides of such a copy."""
    moved = [node for node in nodes if _moves_the_innermost(node)]
    values = [value for node in moved for value in tensors_of(ops.fake(node))]
    return 2 * max((tensor_bytes(value, size) for value in values), default=0)


def _moves_the_innermost(node: fx.Node) -> bool:
    if not isinstance(node.target, OpOverload) or ops.op_name(node) not in TRANSPOSES:
        return False
    value = ops.tensor(node)
    if value is None or value.dim() < 2:
        return False
    if ops.op_name(node) == "permute":
        order = node.args[1]
        return isinstance(order, list | tuple) and order[-1] not in (-1, value.dim() - 1)
    if ops.op_name(node) == "t":
        return True
    return any(isinstance(dim, int) and dim % value.dim() == value.dim() - 1 for dim in node.args[1:3])


def _steps(node: fx.Node, size: Size) -> tuple[int, ...]:
    """The shape that `node` runs over: of its value, or of what it reduces."""
    reads = node.all_input_nodes if _is_reduction(node) else []
    shapes = [_shape(value, size) for one in (node, *reads) for value in tensors_of(ops.fake(one))]
    return max(shapes, key=prod, default=())


def _is_reduction(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and torch.Tag.reduction in node.target.tags


def _shape(value: torch.Tensor, size: Size) -> tuple[int, ...]:
    return tuple(size(length) for length in value.shape)
