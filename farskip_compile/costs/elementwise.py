"""How much arithmetic pointwise operators and reductions do.

In:    a node of an ATen graph.
Out:   elementwise operations; GPUs hide them behind memory, a CPU often does not.
Never: counts products, which have FLOP formulas, or what only moves data.

One operation for each element and operator. A function that is computed by a series counts as several; so does a
comparison, whose result has another width than its operands and must be converted; whole numbers of 64 bits fill a
vector twice as fast. The counts are ratios, measured on loops that Inductor made for a CPU with 512-bit vectors:
`element_rate` of a profile turns them into seconds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from math import prod

import torch
from torch import fx

from farskip_compile._compat import OpOverload
from farskip_compile.costs.memory import tensors_of
from farskip_compile.passes.graph import ops

Size = Callable[[int | torch.SymInt], int]

SERIES = frozenset(
    ["cos", "exp", "exp2", "expm1", "log2", "reciprocal", "rsqrt", "sigmoid", "silu", "sin", "softplus", "sqrt"]
)
SERIES_OPS = 5
"""Operations of one such function."""
LONG_SERIES = frozenset(["erf", "erfc", "gelu", "log", "log10", "log1p", "mish", "logit"])
LONG_SERIES_OPS = 8
POWERS = frozenset(["acos", "asin", "atan", "atan2", "cosh", "lgamma", "pow", "sinh", "tan", "tanh"])
POWER_OPS = 24
"""Of a power with an exponent that is not a small whole number, and of what is computed by no fast series."""
COMPARISONS = frozenset(["eq", "ge", "gt", "isinf", "isnan", "le", "lt", "ne"])
COMPARISON_OPS = 3


def element_ops(node: fx.Node, size: Size) -> int:
    """Elementwise operations of `node` by itself: of the larger of what it reads and what it makes."""
    if (count := weight(node)) == 0:
        return 0
    values = [value for one in (node, *node.all_input_nodes) for value in tensors_of(ops.fake(one))]
    return count * max(prod(size(length) for length in value.shape) for value in values)


def weight(node: fx.Node) -> int:
    """Elementwise operations of `node` for one element; 0 if it does no arithmetic."""
    name = ops.op_name(node)
    usual = _weight(name, node.target) if isinstance(node.target, OpOverload) else 0
    if usual == 1:
        value = ops.tensor(node)
        return 2 if value is not None and value.dtype == torch.int64 else 1
    return 1 if name == "pow" and usual and _is_small(node.args[1]) else usual


@functools.lru_cache(maxsize=4096)
def _weight(name: str, target: OpOverload) -> int:
    """Of one element of 32 bits or less."""
    if torch.Tag.pointwise not in target.tags and torch.Tag.reduction not in target.tags:
        return 0
    if name in SERIES:
        return SERIES_OPS
    if name in LONG_SERIES:
        return LONG_SERIES_OPS
    if name in POWERS:
        return POWER_OPS
    return COMPARISON_OPS if name in COMPARISONS else 1


def _is_small(exponent: object) -> bool:
    """Whether a power is a few products."""
    return isinstance(exponent, int | float) and float(exponent).is_integer() and abs(exponent) <= 8
