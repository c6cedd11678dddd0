"""The sizes of a product by which its measured rate is looked up.

In:    a node of an ATen graph that calls an operator with a FLOP formula.
Out:   how many products of which (rows, inner, columns); of attention how many heads of (queries, keys, width).
Never: hands a symbolic size to a comparison: the caller's `size` turns each into a number first.

Every known product has two factors among its operands; which two, and which of their sizes is what, depends on the
operator. An operator that is not known here has no shape, and costs by the scalar efficiency.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import fx

from farskip_compile.passes.graph import ops

Size = Callable[[int | torch.SymInt], int]
Shape3 = tuple[int, int, int]

FACTORS = {
    "mm": 0,
    "bmm": 0,
    "mv": 0,
    "linear": 0,
    "mkldnn_linear": 0,
    "mkldnn::_linear_pointwise": 0,
    "mkl::_mkl_linear": 0,
    "_scaled_mm": 0,
    "_scaled_mm_v2": 0,
    "_int_mm": 0,
    "_grouped_mm": 0,
    "_scaled_grouped_mm": 0,
    "_scaled_grouped_mm_v2": 0,
    "addmm": 1,
    "baddbmm": 1,
    "addmv": 1,
    "_addmm_activation": 1,
}
"""Operator, and the place of its first factor; the second one follows it."""


def product_shape(node: fx.Node, size: Size) -> tuple[int, Shape3 | None]:
    """(how many products, the sizes of one); (1, None) if the operator is not known here."""
    name = ops.op_name(node)
    if "attention" in name or "attn" in name:
        return _attention(node, size)
    if name not in FACTORS:
        return 1, None
    first, out = _lengths(node, FACTORS[name], size), _of(ops.tensor(node), size)
    second = _lengths(node, FACTORS[name] + 1, size)
    if not first or not out or not second:
        return 1, None
    if "grouped" in name:
        return _groups(first, second, out)
    if len(first) == 1 or len(out) == 1:  # by a vector
        return 1, (prod(out), first[-1], 1)
    if "linear" in name:
        return 1, (prod(first[:-1]), first[-1], out[-1])
    return prod(out[:-2]), (out[-2], first[-1], out[-1])


def is_backward(node: fx.Node) -> bool:
    """Whether `node` is the backward of an attention kernel, which has a rate of its own."""
    return "backward" in ops.op_name(node)


def _attention(node: fx.Node, size: Size) -> tuple[int, Shape3 | None]:
    """Query and key are the first operands of four dimensions; of a backward the gradient comes before them."""
    found = [value for arg in node.args if (value := _of(_tensor(arg), size)) and len(value) == 4]
    query, key = found[1:3] if is_backward(node) and len(found) > 2 else (*found[:2], (), ())[:2]
    if not query or not key:
        return 1, None
    return prod(query[:2]), (query[2], key[2], query[3])


def _groups(first: tuple[int, ...], second: tuple[int, ...], out: tuple[int, ...]) -> tuple[int, Shape3]:
    """Groups share out whichever dimension is not stacked."""
    if len(first) == 3:  # [G, M, K] by [K, T] or a batch
        groups = first[0]
        return groups, (first[1], first[2], out[-1] if len(second) == 3 else max(out[-1] // groups, 1))
    if len(second) == 3:  # [T, K] by [G, K, N]
        groups = second[0]
        return groups, (max(first[0] // groups, 1), first[1], second[-1])
    groups = out[0] if len(out) == 3 else 1  # a weight gradient: [M, T] by [T, N]
    return groups, (out[-2], max(first[1] // groups, 1), out[-1])


def _lengths(node: fx.Node, place: int, size: Size) -> tuple[int, ...]:
    return _of(_tensor(node.args[place]), size) if place < len(node.args) else ()


def _tensor(arg: object) -> torch.Tensor | None:
    return ops.tensor(arg) if isinstance(arg, fx.Node) else None


def _of(value: torch.Tensor | None, size: Size) -> tuple[int, ...]:
    return tuple(size(length) for length in value.shape) if value is not None else ()
