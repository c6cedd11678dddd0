"""How many floating-point operations an operator takes, by torch's own formulas.

In:    a node of an ATen graph with fake values in `meta["val"]`.
Out:   FLOPs and the kind of kernel.
Never: hands a symbolic size to a formula: formulas compare sizes, which would install guards.

Formulas are torch's (`torch.utils.flop_counter`), plus those below for operators that it does not know: attention on
the CPU, grouped products, matrix-vector products.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, Literal

import torch
from torch import fx

from farskip_compile._compat import OpOverload, flop_registry
from farskip_compile.passes import ops

Size = Callable[[int | torch.SymInt], int]
FlopKind = Literal["matmul", "attention", "grouped_matmul", "memory", "unknown"]


class Shape(tuple[int, ...]):
    """Stands for a tensor in a formula: some take shapes, some take tensors and ask for `.shape`."""

    @property
    def shape(self) -> Shape:
        """Itself."""
        return self


def count_flops(node: fx.Node, size: Size) -> tuple[int, FlopKind]:
    """FLOPs of `node`, and which kind of kernel it is; zero for what is bound by memory."""
    target = node.target
    packet = target.overloadpacket if isinstance(target, OpOverload) else target
    formula = EXTRA.get(ops.op_name(node)) or flop_registry.get(packet)
    if formula is None:
        return 0, "memory" if isinstance(target, OpOverload) else "unknown"
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda arg: _shapes(ops.fake(arg), size))
    return int(formula(*args, **kwargs, out_val=_shapes(ops.fake(node), size))), _kind(ops.op_name(node))


def _shapes(value: Any, size: Size) -> Any:
    if isinstance(value, torch.Tensor):
        return Shape(size(length) for length in value.shape)
    if isinstance(value, torch.SymInt):
        return size(value)
    if isinstance(value, list | tuple):
        return type(value)(_shapes(part, size) for part in value)
    return value


def _kind(name: str) -> FlopKind:
    if "attention" in name or "attn" in name:
        return "attention"
    return "grouped_matmul" if "grouped_mm" in name else "matmul"


def _grouped(a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    """Rows [T, K] by weights [G, K, N]; [G, M, K] by [K, T]; [M, T] by [T, N] (weight gradients); or a plain batch."""
    if len(a) == 2 and len(b) == 2:
        return 2 * a[0] * a[1] * b[1]
    if len(a) == 2:
        return 2 * a[0] * a[1] * b[2]
    return 2 * prod(a[1:]) * b[1] if len(b) == 2 else 2 * prod(a) * b[2]


EXTRA: dict[str, Callable[..., int]] = {"_grouped_mm": _grouped, "_scaled_grouped_mm": _grouped}
