# SPDX-License-Identifier: Apache-2.0
"""Which operators leave the rows of their arguments in order, and which bring rows together.

Contract: pure questions about one node, by its canonical name and the dimensions that it is given. They decide what is
tried, not what is right: a wrong answer is noticed by the proof (`verify.tokens`), which has rules of its own.

The rows of a tensor are its first dimension that has more than one entry: a batch of one sequence has as many rows as
tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from farskip_compile._compat import OpOverloadPacket
from farskip_compile.passes.graph import comms, ops

SORTS = frozenset(["argsort", "sort", "msort", "bincount", "histc", "unique", "nonzero", "searchsorted", "bucketize"])
ALONG = frozenset(["cumsum", "cumprod", "sum", "mean", "any", "all", "amax", "amin", "max", "min", "count_nonzero"])
"""Along all dimensions, if none is given."""
PUTS = frozenset(["scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy", "index_fill"])
TURNS = frozenset(["permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "T", "flip", "roll"])
MADE = frozenset(["zeros", "ones", "empty", "full", "arange"]) | ops.LIKE
"""New tensors; those of a size that was given may have a row for each token."""
APART = frozenset(
    [
        "bool",
        "long",
        "int",
        "linear",
        "layer_norm",
        "rms_norm",
        "dropout",
        "one_hot",
        "unsqueeze",
        "squeeze",
        "masked_fill",
        "expand",
    ]
)
"""Rows stay apart whatever the arguments, as far as shapes allow."""
FEATURES = frozenset(
    ["softmax", "log_softmax", "topk", "gather", "take_along_dim", "chunk", "split", "unbind", "select", "stack", "cat"]
)
"""Rows stay apart if the dimension that is given is another one."""


def row_dim(value: torch.Tensor) -> int | None:
    """The dimension along which `value` has rows; None for a single row, or where a size is not known."""
    sizes: Sequence[int | torch.SymInt] = value.shape
    for dim, size in enumerate(sizes):
        if not isinstance(size, int):
            return None
        if size > 1:
            return dim
    return None


def rows_of(node: fx.Node) -> int | None:
    """How many rows the value of `node` has; None if it is not a tensor, or that is not known."""
    value = ops.tensor(node)
    dim = row_dim(value) if value is not None else None
    return int(value.shape[dim]) if value is not None and dim is not None else None


def has_no_rows(node: fx.Node) -> bool:
    """Whether only data decides how many rows there are."""
    value = ops.tensor(node)
    return value is not None and not all(isinstance(size, int) for size in value.shape)


def chooses(node: fx.Node) -> bool:
    """Whether `node` picks the best of some features: experts, or groups of them."""
    return ops.op_name(node) in ("topk", "argmax", "kthvalue", "multinomial")


def mixes(node: fx.Node) -> bool:
    """Whether rows meet in `node`, or change places."""
    name = ops.op_name(node).rstrip("_")
    first = node.all_input_nodes[0] if node.all_input_nodes else None
    value = ops.tensor(first) if first is not None else None
    if name in SORTS or comms.is_all_to_all(node):
        return True
    rows = (row_dim(value) or 0) if value is not None else 0
    if name in ALONG or name in PUTS or name in TURNS or name.endswith("scatter_add"):
        dims = dims_of(node, value.dim() if value is not None else 0)
        return not dims or any(dim <= rows for dim in dims)
    if name in ("getitem", "index"):
        return any(_is_mask(arg) for arg in node.all_input_nodes[1:])
    return False


def _is_mask(node: fx.Node) -> bool:
    value = ops.tensor(node)
    return value is not None and value.dtype == torch.bool


def keeps_rows(node: fx.Node) -> bool:
    """Whether each row of the value of `node` is made of one row of each argument."""
    name = ops.op_name(node).rstrip("_")
    value = ops.tensor(node.all_input_nodes[0]) if node.all_input_nodes else None
    if name == "getitem":
        return value is None or _of_features(node.args[1], row_dim(value) or 0)  # of a tuple, or slices
    if value is not None and (name in FEATURES or name in ALONG or name in ("scatter", "scatter_add")):
        dims = dims_of(node, value.dim())
        return bool(dims) and all(dim > (row_dim(value) or 0) for dim in dims)
    like = name in ops.LIKE and name.endswith("_like")
    return like or name in APART | ops.VIEWS | ops.COPIES | ops.CAST_OPS or bool(name and is_pointwise(name))


def keeps_batch(node: fx.Node) -> bool:
    """Whether each sequence of the value of `node` is made of one sequence of each argument; the batch is their first
    dimension."""
    if keeps_rows(node) or ops.is_attention(node) or comms.is_all_reduce(node) or comms.is_wait(node):
        return True
    name = ops.op_name(node)
    value = ops.tensor(node.all_input_nodes[0]) if node.all_input_nodes else None
    if value is None or value.dim() < 2:
        return False
    if name in TURNS:
        dims = dims_of(node, value.dim())
        return bool(dims) and 0 not in dims
    if name in ("matmul", "bmm"):
        factors = [ops.tensor(arg) for arg in node.args[:2] if isinstance(arg, fx.Node)]
        return all(one is not None and (one.dim() <= 2 or rows_are(one, value)) for one in factors)
    return name in ("embedding", "view_as_complex", "view_as_real", "repeat_interleave", "pad") and (
        name == "embedding" or 0 not in dims_of(node, value.dim())
    )


def rows_are(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether both have as many rows."""
    return bool(one.dim() and other.dim() and one.shape[0] == other.shape[0])


def _of_features(index: object, rows: int) -> bool:
    """Whether an index takes parts of features alone."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if parts[0] is Ellipsis:
        return all(isinstance(part, slice | int) for part in parts[1:])
    plain = all(part is None or isinstance(part, slice | int) for part in parts)
    return plain and len(parts) > rows and all(part == slice(None) for part in parts[: rows + 1])


@functools.lru_cache(maxsize=4096)
def is_pointwise(name: str) -> bool:
    """By the tag of the ATen operator of this name."""
    packet = getattr(torch.ops.aten, {"truediv": "div", "invert": "bitwise_not"}.get(name, name), None)
    if not isinstance(packet, OpOverloadPacket) or "::" in name:
        return False
    return any(torch.Tag.pointwise in getattr(packet, overload).tags for overload in packet.overloads())


def dims_of(node: fx.Node, count: int) -> list[int]:
    """The dimensions that a call names, of `count`; none if it names none."""
    if "dim" in node.kwargs or "axis" in node.kwargs:
        given: Any = node.kwargs.get("dim", node.kwargs.get("axis"))
    else:
        place = 2 if ops.op_name(node) in ("topk", "split", "chunk", "take_along_dim") else 1
        given = node.args[place] if len(node.args) > place else _default(node)
        if ops.op_name(node) in ("transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis"):
            given = _flat(node.args[1:])
    found = [dim for dim in _flat(given if isinstance(given, Sequence) else [given]) if isinstance(dim, int)]
    if ops.op_name(node) == "permute":
        return [dim for place, dim in enumerate(found) if dim % max(count, 1) != place]
    return [dim % max(count, 1) for dim in found]


def _default(node: fx.Node) -> object:
    return {"topk": -1, "chunk": 0, "split": 0, "unbind": 0, "stack": 0, "cat": 0, "scatter_add": 0}.get(
        ops.op_name(node)
    )


def _flat(values: Sequence[Any]) -> list[Any]:
    return [one for value in values for one in (value if isinstance(value, list | tuple) else [value])]
