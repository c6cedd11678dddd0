# SPDX-License-Identifier: Apache-2.0
"""What operators give on fake values, found out once for equal calls: the layers of a model are alike.

In:    an operator, and arguments with fake tensors for tensors.
Out:   what it gives: a fake tensor of the same size, strides, type and device, in memory of its own or in that of the
       same argument, as if the operator had been called.
Never: remembers a call with a symbolic size, or one that gives anything but one dense tensor: those are made each time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from farskip_compile._compat.fakes import FakeTensor, fake_tensor, fake_view
from farskip_compile._compat.tensors import storage_identity


class _Kind(NamedTuple):
    """All that tells one tensor from another, but for its memory and what is in it."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device


class _Result(NamedTuple):
    kind: _Kind
    memory: int
    """Which of the tensors among the arguments it is in the memory of; -1: in its own."""


class Results:
    """The results of one graph's calls."""

    def __init__(self) -> None:
        self._known: dict[Any, _Result] = {}

    def of(self, target: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What `target(*args, **kwargs)` gives; at least one of the arguments is a fake tensor, or a list with one."""
        call = _Call(target, args, kwargs)
        known = self._known.get(call.key) if call.is_plain else None
        if known is not None:
            size, stride, offset, dtype, device = known.kind
            if known.memory < 0:
                return fake_tensor(call.tensors[0], size, stride, dtype, device)
            return fake_view(call.tensors[known.memory], size, stride, offset)
        with call.tensors[0].fake_mode:
            value = target(*args, **kwargs)
        if call.is_plain and (result := call.result(value)) is not None:
            self._known[call.key] = result
        return value


class _Call:
    """What is called, and what of that decides how the result looks."""

    def __init__(self, target: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.tensors: list[FakeTensor] = []
        self.is_plain = True
        """No argument is a symbol, or a tensor that `_kind` does not describe: the key says how the result looks."""
        self.key = target, self._key(tuple(args)), self._key(tuple(kwargs.items()))

    def _key(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return tuple(map(self._key, value))
        if isinstance(value, FakeTensor):
            self.tensors.append(value)
        if isinstance(value, torch.Tensor):
            kind = _kind(value)
            self.is_plain &= kind is not None
            return kind
        self.is_plain &= not isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool)
        return (type(value), value) if self.is_plain else None

    def result(self, value: Any) -> _Result | None:
        """How `value`, which the call gave, looks; None if that can't be remembered."""
        kind = _kind(value)
        if kind is None:
            return None
        memory = storage_identity(value)
        places = [place for place, one in enumerate(self.tensors) if storage_identity(one) == memory]
        if not places:
            return _Result(kind, -1) if kind.offset == 0 else None
        # where arguments share the memory, other calls need not do so
        is_clear = len(places) == 1 and kind.dtype == self.tensors[places[0]].dtype
        return _Result(kind, places[0]) if is_clear else None


def _kind(value: Any) -> _Kind | None:
    """None for what is not a fake tensor whose sizes are numbers and whose elements lie in one memory."""
    if type(value) is not FakeTensor or value.layout != torch.strided or value.requires_grad:
        return None
    offset = value.storage_offset()
    if not all(type(one) is int for one in (*value.shape, *value.stride(), offset)):
        return None
    return _Kind(tuple(value.shape), value.stride(), int(offset), value.dtype, value.device)
