# SPDX-License-Identifier: Apache-2.0
"""A watch for operators that write into some memory, which puts the bytes back.

In:    tensors, such as the parameters of a model, whose memory is to come back unchanged.
Out:   `Writes`: a mode. Before the first operator that writes into that memory, it copies the bytes; `undo` puts them
       back. Nothing else is copied: the weights of a model may fill a device.
Never: misses an operator of PyTorch, in place or with `out=`, through views, `.data`, other names of the same memory,
       or the parts of a distributed tensor. Writes that pass no operator (numpy's, kernels launched by hand) are not
       seen; nor are those of code that is compiled within `WritesOutsideCompiles`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from farskip_compile._compat import OpOverload
from farskip_compile._compat.dispatch import OperatorMode
from farskip_compile._compat.tensors import parameters, storage_identity

COLLECTIVES = "c10d"
"""Namespace of operators whose schemas do not say what they write."""


class Writes(OperatorMode):
    """A mode that watches for writes into the memory of `tensors`. Compiled functions run eagerly in it.

    Args:
        tensors: the tensors whose memory is kept.
    """

    supports_higher_order_operators = True

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        super().__init__()
        parts = [part for tensor in tensors for part in plain_tensors(tensor) if not part.is_meta]
        self._watched = {storage_identity(part): part.untyped_storage() for part in parts}
        self._before: dict[int, torch.Tensor] = {}

    def has_changed(self, tensor: torch.Tensor) -> bool:
        """Return whether something has written into the memory of `tensor`."""
        return any(storage_identity(part) in self._before for part in plain_tensors(tensor))

    def undo(self) -> None:
        """Put back the bytes of all memory that was written."""
        for identity, before in self._before.items():
            _bytes(self._watched[identity]).copy_(before)
        self._before.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for part in _written(func, args, kwargs):
            identity = storage_identity(part)
            if identity in self._watched and identity not in self._before:
                self._before[identity] = _bytes(self._watched[identity]).clone()
        return func(*args, **kwargs)


class WritesOutsideCompiles(Writes):
    """A watch in which `torch.compile` works as it does elsewhere; writes in compiled code are not seen."""

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Tell PyTorch that compiling within the block is fine."""
        return True


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[torch.Tensor]:
    """Yield the plain tensors into which a call of an operator may write."""
    if not isinstance(func, OpOverload):  # a higher-order operator: the operators that it runs do the writing
        return
    declared = parameters(func)
    given = dict(zip((one.name for one in declared), args, strict=False)) | kwargs
    for one in declared:
        if func.namespace == COLLECTIVES or (one.alias_info is not None and one.alias_info.is_write):
            value = given.get(one.name)
            for tensor in value if isinstance(value, list | tuple) else [value]:
                if isinstance(tensor, torch.Tensor):
                    yield from plain_tensors(tensor)


def plain_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the tensors that own the memory of `tensor`: itself, or what a wrapper subclass holds."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        for name in names:
            part = getattr(tensor, name)
            if isinstance(part, torch.Tensor):  # a DTensor names its device mesh, too
                yield from plain_tensors(part)
    elif tensor.layout == torch.strided:
        yield tensor


def memory_of(tensor: torch.Tensor) -> tuple[object, ...]:
    """Return the place and the form of the memory of `tensor`: equal for tensors that are the same numbers."""
    parts = list(plain_tensors(tensor))
    return tensor.shape, *((storage_identity(one), one.storage_offset(), one.stride(), one.dtype) for one in parts)


def _bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    """Return a tensor that is the memory of `storage`; writing it leaves the versions of other tensors alone."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
