"""How many floating-point operations an operator takes, by torch's own formulas.

In:    a node of an ATen graph with fake values in `meta["val"]`.
Out:   FLOPs, the kind of kernel, and which part of the FLOPs it really executes.
Never: hands a symbolic size to a formula: formulas compare sizes, which would install guards.

Formulas are torch's (`torch.utils.flop_counter`), plus those at the end of this file for operators that torch does not
count: attention on the CPU, grouped products, matrix-vector products.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, prod
from typing import Any, Literal

import torch
from torch import fx

from farskip_compile._compat import OpOverload
from farskip_compile._compat.costs import flop_registry
from farskip_compile._compat.operators import parameters
from farskip_compile.passes.graph import ops

Size = Callable[[int | torch.SymInt], int]
FlopKind = Literal["matmul", "attention", "grouped_matmul"]
aten = torch.ops.aten


class Shape(tuple[int, ...]):
    """Stands for a tensor in a formula: some formulas take shapes, others take tensors and ask for their shape."""

    device = torch.device("meta")

    @property
    def shape(self) -> Shape:
        """Itself."""
        return self

    def size(self, dim: int) -> int:
        """Length of one dimension."""
        return self[dim]


def formula_of(node: fx.Node) -> Callable[..., Any] | None:
    """The FLOP formula of the operator that `node` calls, if there is one."""
    target = node.target.overloadpacket if isinstance(node.target, OpOverload) else node.target
    return EXTRA.get(ops.op_name(node)) or flop_registry.get(target)


def count_flops(node: fx.Node, formula: Callable[..., Any], size: Size) -> int:
    """FLOPs of `node`.

    Formulas assert that sizes fit. Where estimates of data-dependent sizes do not, all that is known is counted: each
    element of the result is a dot product along the last dimension of the first operand.
    """
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda arg: shapes(ops.fake(arg), size))
    out = shapes(ops.fake(node), size)
    try:
        return int(formula(*args, **kwargs, out_val=out))
    except AssertionError:
        first = next(shape for shape in args if isinstance(shape, Shape) and len(shape) > 1)
        return 2 * prod(out if isinstance(out, Shape) else out[0]) * first[-1]


def flop_kind(node: fx.Node) -> FlopKind:
    """Which efficiency of a profile applies."""
    name = ops.op_name(node)
    if "attention" in name or "attn" in name:
        return "attention"
    return "grouped_matmul" if "grouped_mm" in name else "matmul"


CPU_KEYS = 512
"""Keys that the attention kernel for CPUs takes at a time (torch's `flash_attention_kernel`)."""


def executed_part(node: fx.Node, keys: int | None) -> float:
    """Part of the FLOPs that an attention executes: kernels skip what a causal mask hides.

    That is a half where queries and keys are equally many. The kernel for CPUs skips whole blocks of keys, so that it
    gains nothing up to the size of one, and a third at three (measured, forward and backward: 0.69).

    Args:
        node: any operator; whatever has no causal mask executes all.
        keys: of an attention; None: not known.
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


def shapes(value: Any, size: Size) -> Any:
    """`value` with tensors as shapes and symbolic numbers as numbers."""
    if isinstance(value, torch.Tensor):
        return Shape(size(length) for length in value.shape)
    if isinstance(value, torch.SymInt):
        return size(value)
    return tuple(shapes(part, size) for part in value) if isinstance(value, list | tuple) else value


def _grouped(a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    """[T, K] by [G, K, N]: rows by weights; [G, M, K] by [K, T]; [M, T] by [T, N]: a weight gradient; or a batch."""
    if len(a) == 2:
        return 2 * prod(a) * b[-1]
    return 2 * prod(a) * b[-1] if len(b) == 3 else 2 * prod(a[1:]) * b[-1]


def _row_by_row(x: Shape, *_: Any, out_val: Shape, **__: Any) -> int:
    """Each element of the result is a dot product along the last dimension of the first operand."""
    return 2 * prod(out_val) * x[-1]


def _second_by_third(_: Any, a: Shape, *__: Any, out_val: Shape, **___: Any) -> int:
    return 2 * prod(out_val) * a[-1]


def _sum_of_products(_: Any, a: Shape, b: Shape, *__: Any, **___: Any) -> int:
    return 2 * prod(a) * b[-1]


ATTENTION = flop_registry[aten._scaled_dot_product_flash_attention]
ATTENTION_BACKWARD = flop_registry[aten._scaled_dot_product_flash_attention_backward]

EXTRA: dict[str, Callable[..., Any]] = {
    "_scaled_dot_product_flash_attention_for_cpu": ATTENTION,
    "_scaled_dot_product_flash_attention_for_cpu_backward": ATTENTION_BACKWARD,
    "_scaled_dot_product_fused_attention_overrideable": ATTENTION,
    "_scaled_dot_product_fused_attention_overrideable_backward": ATTENTION_BACKWARD,
    "_grouped_mm": _grouped,
    "_scaled_grouped_mm": _grouped,
    "_scaled_grouped_mm_v2": _grouped,
    "_scaled_mm_v2": _row_by_row,
    "_int_mm": _row_by_row,
    "linear": _row_by_row,
    "mkldnn_linear": _row_by_row,
    "mkldnn::_linear_pointwise": _row_by_row,
    "mkl::_mkl_linear": _row_by_row,
    "mv": _row_by_row,
    "dot": _row_by_row,
    "vdot": _row_by_row,
    "_addmm_activation": _second_by_third,
    "addmv": _second_by_third,
    "addbmm": _sum_of_products,
}
"""Operators without a formula in torch's registry, by the name that `ops.op_name` gives them."""
