# SPDX-License-Identifier: Apache-2.0
"""The work of pointwise operators, reductions and kernels fused from them, besides the bytes they move.

In:    a node of an ATen graph; for a kernel, the nodes of each loop that was fused into it.
Out:   elementwise operations, and the part of the traffic that is transposed. GPUs hide arithmetic behind memory, a CPU
       often does not.
Never: looks at generated code; counts products, which have FLOP formulas, or operators that only move data.

A node: one operation for each element. A function that is computed by a series counts as several; so does a comparison,
whose result has another width than its operands and must be converted; 64-bit integers fill a vector twice as fast. The
counts are ratios, measured on loops that Inductor made for a CPU with 512-bit vectors; `element_rate` of a profile
turns them into seconds.

A loop: a node is computed in every step of the loop, also if its own value is smaller: a rotary table, or the mask
of a softmax, again for each head. And each loop that reads it computes it again. Only values that are equal along the
innermost dimension are computed once per row: the factor of a norm, a row's index. So the operations of a loop are
those of its nodes for one step, times the steps of its largest node, or times its rows. Loops of one kernel that run
over the same steps and share nodes are one loop, which computes these once; but a reduction must be finished before its
result is read, so reductions and other loops stay apart. Each loop has one operation more, which stands for its loads
and stores: a softmax passes over its rows four times.

A loop transposes if it has a view that moves the innermost dimension, and it reads or writes a tensor that has that
dimension elsewhere: the last dimension is then not contiguous in memory.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from math import prod

import torch
from torch import fx

from farskip_compile._compat import OpOverload
from farskip_compile.costs.fusion import tagged
from farskip_compile.costs.memory import SizeHint, operand_tensors, tensor_bytes, tensors_of
from farskip_compile.passes.graph import ops

SERIES = ("cos", "exp", "exp2", "expm1", "log2", "reciprocal", "rsqrt", "sigmoid", "silu", "sin", "softplus", "sqrt")
WEIGHTS = {
    **dict.fromkeys(SERIES, 5),
    **dict.fromkeys(("erf", "erfc", "gelu", "log", "log10", "log1p", "mish", "logit"), 8),
    **dict.fromkeys(("acos", "asin", "atan", "atan2", "cosh", "lgamma", "pow", "sinh", "tan", "tanh"), 24),
    **dict.fromkeys(("eq", "ge", "gt", "isinf", "isnan", "le", "lt", "ne"), 3),
}
"""Operations of one function, if not 1. 24: powers except for small integers, and functions without a fast series."""
TRANSPOSES = ("permute", "transpose", "t")


def element_ops(node: fx.Node, size: SizeHint) -> int:
    """Return the elementwise operations of `node` by itself, over the larger of its operands and results."""
    if (count := weight(node)) == 0:
        return 0
    values = [*tensors_of(ops.fake(node)), *operand_tensors(node)]
    return count * max(prod(map(size, value.shape)) for value in values)


def weight(node: fx.Node) -> int:
    """Return the elementwise operations of `node` for one element; 0 if it does no arithmetic."""
    name = ops.op_name(node)
    count = _weight(name, node.target) if isinstance(node.target, OpOverload) else 0
    if count == 1:
        value = ops.tensor(node)
        return 2 if value is not None and value.dtype == torch.int64 else 1
    power = node.args[1] if name == "pow" and count else None
    small = isinstance(power, int | float) and float(power).is_integer() and abs(power) <= 8  # a few products
    return 1 if small else count


@functools.lru_cache(maxsize=4096)
def _weight(name: str, target: OpOverload) -> int:
    """Return the elementwise operations for an element of 32 bits or less."""
    is_arithmetic = torch.Tag.pointwise in target.tags or torch.Tag.reduction in target.tags
    return WEIGHTS.get(name, 1) if is_arithmetic else 0


def kernel_ops(loops: Sequence[Sequence[fx.Node]], size: SizeHint) -> int:
    """Return the elementwise operations of a kernel that was fused from `loops`."""
    merged: list[tuple[tuple[bool, int], dict[fx.Node, None]]] = []
    for nodes in loops:
        computed = dict.fromkeys(node for node in nodes if weight(node))
        if not computed:
            continue
        reduces = any(tagged(node, torch.Tag.reduction) for node in computed)
        key = reduces, max(prod(_steps(node, size)) for node in computed)
        shared = next(
            (others for kind, others in merged if kind == key and not others.keys().isdisjoint(computed)), None
        )
        if shared is None:
            merged.append((key, computed))
        else:
            shared.update(computed)
    return sum(loop_ops(list(nodes), size) + steps for (_, steps), nodes in merged)


def loop_ops(nodes: Sequence[fx.Node], size: SizeHint) -> int:
    """Return the elementwise operations of the loop that computes `nodes`."""
    shapes = {node: _steps(node, size) for node in nodes if weight(node)}
    if not shapes:
        return 0
    largest = max(shapes.values(), key=prod)
    steps, row = prod(largest), max(largest[-1], 1) if largest else 1
    return sum(
        weight(node) * (steps if prod(shape) == steps or (shape and shape[-1] == row) else -(-steps // row))
        for node, shape in shapes.items()
    )


def transposed_bytes(nodes: Sequence[fx.Node], size: SizeHint) -> int:
    """Return the bytes that the loop of `nodes` reads or writes across the memory's order.

    Both sides of such a copy count.
    """
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


def _steps(node: fx.Node, size: SizeHint) -> tuple[int, ...]:
    """Return the shape that `node` runs over: that of its value, or of the operand that it reduces."""
    values = tensors_of(ops.fake(node))
    if tagged(node, torch.Tag.reduction):
        values = [*values, *operand_tensors(node)]
    return max((tuple(map(size, value.shape)) for value in values), key=prod, default=())
