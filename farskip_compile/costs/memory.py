# SPDX-License-Identifier: Apache-2.0
"""The bytes of fake tensors, and the bytes that an operator moves.

In:    fake tensors; nodes of an ATen graph.
Out:   bytes.
Never: compares a symbolic size, which would install a guard: the caller's `size` turns each into a number first.

An operator reads its inputs and writes its outputs once, except that
1. views and allocations move nothing;
2. a lookup reads as much of its table as it returns;
3. a fill, or a copy over a tensor, does not read the data that it overwrites;
4. a scatter in place touches only the scattered elements.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from farskip_compile._compat import OpOverload
from farskip_compile.passes.graph import ops

SizeHint = Callable[[int | torch.SymInt], int]
"""A function from a size, which may be symbolic, to a number; see `sizes.SizeHints`."""

FREE_OPS = frozenset([
    "getitem", "_unsafe_view", "empty", "empty_like", "empty_strided", "empty_permuted", "new_empty",
    "new_empty_strided",
])  # fmt: skip
"""Operators that move nothing, besides views and those that return no tensor."""
LOOKUPS = frozenset(
    ["embedding", "gather", "index", "index_select", "take", "take_along_dim", "_unsafe_index", "_unsafe_masked_index"]
)
"""Operators that read some rows of their first argument, a table."""
FILLS = frozenset([
    "full_like", "zeros_like", "ones_like", "rand_like", "randn_like", "randint_like", "new_zeros", "new_ones",
    "new_full", "fill", "fill_", "zero", "zero_",
])  # fmt: skip
"""Operators whose tensor arguments give only a shape or one number."""
OVERWRITES = frozenset(["copy", "copy_"])
"""Operators that do not read their first argument."""
SCATTERS = frozenset(
    ["index_put_", "_index_put_impl_", "index_add_", "index_copy_", "scatter_", "scatter_add_", "scatter_reduce_"]
)
"""Operators that write some places of the first argument."""


class NodeBytes(ABC):
    """A function from sizes to numbers that remembers the bytes of nodes, since all readers of a node need them."""

    def __init__(self) -> None:
        self._bytes: dict[fx.Node, int] = {}

    @abstractmethod
    def __call__(self, length: Any) -> int:
        """Return the number that stands for `length`."""

    def bytes_of(self, node: fx.Node) -> int:
        """Return the bytes of the value of `node`, all its tensors."""
        known = self._bytes.get(node)
        if known is None:
            known = self._bytes[node] = _bytes(node, self)
        return known


def node_bytes(node: fx.Node, size: SizeHint) -> int:
    """Return the bytes of the value of a node, all its tensors."""
    return size.bytes_of(node) if isinstance(size, NodeBytes) else _bytes(node, size)


def _bytes(node: fx.Node, size: SizeHint) -> int:
    return sum(tensor_bytes(value, size) for value in tensors_of(ops.fake(node)))


def tensors_of(value: object) -> list[torch.Tensor]:
    """Return the tensors in the value of a node: itself, or the members of a list, tuple or mapping."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return [tensor for part in value for tensor in tensors_of(part)] if isinstance(value, list | tuple) else []


def operand_tensors(node: fx.Node) -> list[torch.Tensor]:
    """Return the tensors in the values of the inputs of `node`."""
    found: list[torch.Tensor] = []
    for source in node.all_input_nodes:
        found += tensors_of(ops.fake(source))
    return found


def tensor_bytes(value: torch.Tensor, size: SizeHint) -> int:
    """Return the bytes of the elements that `value` shows; a broadcast dimension (stride 0) counts once."""
    strides = value.stride() if value.layout is torch.strided else (1,) * value.dim()
    count = value.dtype.itemsize
    for length, stride in zip(value.shape, strides, strict=True):
        if type(stride) is not int or stride != 0:
            count *= size(length)
    return count


def is_free(node: fx.Node) -> bool:
    """Return whether `node` moves nothing: a view, an allocation, arithmetic on sizes, an input or an output."""
    if node.op != "call_function" or ops.op_name(node) in FREE_OPS:
        return True
    if isinstance(node.target, OpOverload) and node.target.is_view:
        return True
    return not tensors_of(ops.fake(node)) and not is_sync(node)


def is_sync(node: fx.Node) -> bool:
    """Return whether `node` reads a number on the host and waits for the device; a copy on the host has waited."""
    if ops.op_name(node) not in ("_local_scalar_dense", "item"):
        return False
    picked = node.args[0]
    source = picked.args[0] if isinstance(picked, fx.Node) and picked.args else None
    return not (isinstance(source, fx.Node) and ops.op_name(source) == "farskip::on_host")


def traffic(node: fx.Node, size: SizeHint) -> tuple[int, int]:
    """Return the bytes that the operator `node` (reads, writes) if it runs alone."""
    name = ops.op_name(node)
    written = node_bytes(node, size)
    first = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    if name in FILLS:
        return 0, written
    skipped = first if name in LOOKUPS | OVERWRITES | SCATTERS else None
    sources = [source for source in node.all_input_nodes if source is not skipped]
    reads = [node_bytes(source, size) for source in sources]
    if name in LOOKUPS:
        return sum(reads) + written, written
    if name in SCATTERS:  # what is scattered comes last
        return sum(reads), reads[-1] if reads else 0
    return sum(reads), written
