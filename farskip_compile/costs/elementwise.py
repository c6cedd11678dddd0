"""How much arithmetic pointwise operators and reductions do.

In:    a node of an ATen graph.
Out:   elementwise operations; GPUs hide them behind memory, a CPU often does not.
Never: counts products, which have FLOP formulas, or what only moves data.

One operation for each element and operator; a function that is computed by a series, such as exp, counts as several.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import fx

from farskip_compile._compat import OpOverload
from farskip_compile.costs.memory import tensors_of
from farskip_compile.passes import ops

Size = Callable[[int | torch.SymInt], int]

SERIES = frozenset(
    ["cos", "erf", "exp", "exp2", "expm1", "gelu", "log", "log1p", "log2", "sigmoid", "silu", "sin", "softplus", "tanh"]
)
SERIES_OPS = 5
"""Operations of one such function: measured on fused softmax and SwiGLU loops of Inductor on a CPU."""


def element_ops(node: fx.Node, size: Size) -> int:
    """Elementwise operations of `node`: of the larger of what it reads and what it makes."""
    if not isinstance(node.target, OpOverload):
        return 0
    if torch.Tag.pointwise not in node.target.tags and torch.Tag.reduction not in node.target.tags:
        return 0
    values = [value for one in (node, *node.all_input_nodes) for value in tensors_of(ops.fake(one))]
    elements = max(prod(size(length) for length in value.shape) for value in values)
    return elements * (SERIES_OPS if ops.op_name(node) in SERIES else 1)
