# SPDX-License-Identifier: Apache-2.0
"""The floating-point operations and the sizes of a product, by torch's own formulas.

In:    a node of an ATen graph with fake values in `meta["val"]`.
Out:   FLOPs, the kind of kernel, the fraction of the FLOPs that it executes; and for the lookup of a measured rate the
       number of products with their (rows, inner, columns), or of heads with their (queries, keys, width).
Never: hands a symbolic size to a formula or a comparison, which would install guards: the caller's `size` turns each
       into a number first.

Formulas are torch's (`torch.utils.flop_counter`), plus `EXTRA` for operators that torch does not count: attention on
the CPU, grouped products, matrix-vector products.

Every known product has two factors among its operands. Their positions (`FACTORS`), and the meaning of their sizes,
depend on the operator. An unknown operator has no shape, and costs by the scalar efficiency.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, prod
from typing import Any, Literal

import torch
from torch import fx

from farskip_compile._compat import OpOverload
from farskip_compile._compat.costs import flop_registry
from farskip_compile._compat.tensors import parameters
from farskip_compile.costs.memory import SizeHint
from farskip_compile.passes.graph import ops

FlopKind = Literal["matmul", "attention", "grouped_matmul"]
aten = torch.ops.aten
CPU_KEYS = 512
"""Keys that the attention kernel for CPUs takes at a time (torch's `flash_attention_kernel`)."""
LINEAR = ("linear", "mkldnn_linear", "mkldnn::_linear_pointwise", "mkl::_mkl_linear")
GROUPED = ("_grouped_mm", "_scaled_grouped_mm", "_scaled_grouped_mm_v2")
ATTENTION = flop_registry[aten._scaled_dot_product_flash_attention]
ATTENTION_BACKWARD = flop_registry[aten._scaled_dot_product_flash_attention_backward]
Shape3 = tuple[int, int, int]


class ShapeTensor(tuple[int, ...]):
    """A stand-in for a tensor in a formula: some formulas take shapes, others ask tensors for their shape."""

    device = torch.device("meta")

    @property
    def shape(self) -> ShapeTensor:
        """The shape, which is the stand-in itself."""
        return self

    def size(self, dim: int) -> int:
        """Return the length of one dimension."""
        return self[dim]


def formula_of(node: fx.Node) -> Callable[..., Any] | None:
    """Return the FLOP formula of the operator that `node` calls, if there is one."""
    target = node.target.overloadpacket if isinstance(node.target, OpOverload) else node.target
    return EXTRA.get(ops.op_name(node)) or flop_registry.get(target)


def count_flops(node: fx.Node, formula: Callable[..., Any], size: SizeHint) -> int:
    """Return the FLOPs of `node`.

    Formulas assert that sizes fit. If estimates of data-dependent sizes do not, the known sizes count: each element of
    the result is a dot product along the last dimension of the first operand.
    """
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda arg: shapes(ops.fake(arg), size))
    out = shapes(ops.fake(node), size)
    try:
        return int(formula(*args, **kwargs, out_val=out))
    except AssertionError:
        first = next(shape for shape in args if isinstance(shape, ShapeTensor) and len(shape) > 1)
        return _row_by_row(first, out_val=out if isinstance(out, ShapeTensor) else out[0])


def flop_kind(node: fx.Node) -> FlopKind:
    """Return the efficiency of a profile that applies."""
    name = ops.op_name(node)
    if "attention" in name or "attn" in name:
        return "attention"
    return "grouped_matmul" if "grouped_mm" in name else "matmul"


def executed_part(node: fx.Node, keys: int | None) -> float:
    """Return the fraction of the FLOPs that an attention executes: kernels skip what a causal mask hides.

    That is a half for equally many queries and keys. The kernel for CPUs skips whole blocks of keys (None: their number
    is not known), so that it gains nothing up to the size of one, and a third at three (measured, forward and backward:
    0.69). Operators without a causal mask execute all.
    """
    target = node.target
    if not isinstance(target, OpOverload):
        return 1.0
    for position, argument in enumerate(parameters(target)):
        if argument.name == "is_causal":
            value = node.args[position] if position < len(node.args) else node.kwargs.get("is_causal", False)
            if value is not True:
                return 1.0
            blocks = ceil((keys or 1) / CPU_KEYS)
            return (blocks + 1) / (2 * blocks) if "for_cpu" in ops.op_name(node) else 0.5
    return 1.0


def shapes(value: Any, size: SizeHint) -> Any:
    """Return `value` with tensors as shapes and symbolic numbers as numbers."""
    if isinstance(value, torch.Tensor):
        return ShapeTensor(size(length) for length in value.shape)
    if isinstance(value, torch.SymInt):
        return size(value)
    return tuple(shapes(part, size) for part in value) if isinstance(value, list | tuple) else value


def _grouped(a: ShapeTensor, b: ShapeTensor, *_: Any, **__: Any) -> int:
    """Count [T, K] by [G, K, N] (rows by weights), [G, M, K] by [K, T], [M, T] by [T, N] (a gradient), or a batch."""
    return 2 * prod(a if len(a) == 2 or len(b) == 3 else a[1:]) * b[-1]


def _row_by_row(x: ShapeTensor, *_: Any, out_val: ShapeTensor, **__: Any) -> int:
    """Count a dot product along the last dimension of the first operand for each element of the result."""
    return 2 * prod(out_val) * x[-1]


EXTRA: dict[str, Callable[..., Any]] = {
    "_scaled_dot_product_flash_attention_for_cpu": ATTENTION,
    "_scaled_dot_product_flash_attention_for_cpu_backward": ATTENTION_BACKWARD,
    "_scaled_dot_product_fused_attention_overrideable": ATTENTION,
    "_scaled_dot_product_fused_attention_overrideable_backward": ATTENTION_BACKWARD,
    **dict.fromkeys(GROUPED, _grouped),
    **dict.fromkeys((*LINEAR, "_scaled_mm_v2", "_int_mm", "mv", "dot", "vdot"), _row_by_row),
    **dict.fromkeys(("_addmm_activation", "addmv"), lambda _, a, *__, out_val, **___: _row_by_row(a, out_val=out_val)),
    "addbmm": lambda _, a, b, *__, **___: 2 * prod(a) * b[-1],
}
"""Formulas of operators that have none in torch's registry, by the name from `ops.op_name`."""


FACTORS = {
    **dict.fromkeys(("mm", "bmm", "mv", *LINEAR, "_scaled_mm", "_scaled_mm_v2", "_int_mm", *GROUPED), 0),
    **dict.fromkeys(("addmm", "baddbmm", "addmv", "_addmm_activation"), 1),
}
"""The position of the first factor, by operator; the second factor follows."""


def product_shape(node: fx.Node, size: SizeHint) -> tuple[int, Shape3 | None]:
    """Return (the number of products, the sizes of one); (1, None) for an unknown operator."""
    name = ops.op_name(node)
    if "attention" in name or "attn" in name:
        return _attention(node, size)
    if name not in FACTORS:
        return 1, None
    place = FACTORS[name]
    lengths = [_lengths(arg, size) for arg in node.args[place : place + 2]]
    out = _lengths(node, size)
    if len(lengths) < 2 or not all(lengths) or not out:
        return 1, None
    first, second = lengths
    if "grouped" in name:
        return _groups(first, second, out)
    if len(first) == 1 or len(out) == 1:  # by a vector
        return 1, (prod(out), first[-1], 1)
    if "linear" in name:
        return 1, (prod(first[:-1]), first[-1], out[-1])
    return prod(out[:-2]), (out[-2], first[-1], out[-1])


def is_backward(node: fx.Node) -> bool:
    """Return whether `node` is the backward of an attention kernel, which has a rate of its own."""
    return "backward" in ops.op_name(node)


def _attention(node: fx.Node, size: SizeHint) -> tuple[int, Shape3 | None]:
    """Return heads and sizes; query and key are the first operands of four dimensions, after a backward's gradient."""
    found = [value for arg in node.args if (value := _lengths(arg, size)) and len(value) == 4]
    query, key = found[1:3] if is_backward(node) and len(found) > 2 else (*found[:2], (), ())[:2]
    if not query or not key:
        return 1, None
    return prod(query[:2]), (query[2], key[2], query[3])


def _groups(first: tuple[int, ...], second: tuple[int, ...], out: tuple[int, ...]) -> tuple[int, Shape3]:
    """Return groups and sizes; groups split whichever dimension is not stacked."""
    if len(first) == 3:  # [G, M, K] by [K, T] or a batch
        groups = first[0]
        return groups, (first[1], first[2], out[-1] if len(second) == 3 else max(out[-1] // groups, 1))
    if len(second) == 3:  # [T, K] by [G, K, N]
        groups = second[0]
        return groups, (max(first[0] // groups, 1), first[1], second[-1])
    groups = out[0] if len(out) == 3 else 1  # a weight gradient: [M, T] by [T, N]
    return groups, (out[-2], max(first[1] // groups, 1), out[-1])


def _lengths(arg: object, size: SizeHint) -> tuple[int, ...]:
    value = ops.tensor(arg) if isinstance(arg, fx.Node) else None
    return tuple(map(size, value.shape)) if value is not None else ()
