"""How many bytes a fake tensor stands for.

Contract: sizes may be symbolic and are turned into numbers by the caller's `size`; no size is ever compared, which
would install a guard.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Size = Callable[[int | torch.SymInt], int]


def tensors_of(value: object) -> list[torch.Tensor]:
    """The tensors in the value of a node: itself, or the members of a list or tuple."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for part in value for t in tensors_of(part)] if isinstance(value, list | tuple) else []


def tensor_bytes(value: torch.Tensor, size: Size) -> int:
    """Bytes of the elements that `value` shows; a broadcast dimension (stride 0) counts once."""
    if value.layout is not torch.strided:
        return numel(value, size) * value.dtype.itemsize
    count = 1
    for length, stride in zip(value.shape, value.stride(), strict=True):
        if not (type(stride) is int and stride == 0):
            count *= size(length)
    return count * value.dtype.itemsize


def numel(value: torch.Tensor, size: Size) -> int:
    """Number of elements of `value`."""
    count = 1
    for length in value.shape:
        count *= size(length)
    return count
