# SPDX-License-Identifier: Apache-2.0
"""Differences between an operator that writes in place and its twin: type, autocast, gradients.

Contract: the twin is called on fake tensors, once for each kind of arguments; nothing of a graph is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from farskip_compile.verify.normalized.callees import Callee
from farskip_compile.verify.normalized.values import fake_values

CheckedAutocast = tuple[str, torch.dtype] | None
"""Device type and type of the autocast that is on."""


class TwinTypes:
    """The types of what twins return."""

    def __init__(self) -> None:
        self._types: dict[Hashable, torch.dtype | None] = {}

    def type_of(
        self, callee: Callee, args: tuple[Any, ...], kwargs: dict[str, Any], autocast: CheckedAutocast
    ) -> torch.dtype | None:
        """Return the type of what the twin of `callee` returns for these values; None if it can't be called."""
        args, kwargs = fake_values(args), fake_values(kwargs)
        kind = (id(callee.twin), callee.name, autocast, _kind(args), _kind(kwargs))
        if kind not in self._types:
            self._types[kind] = _call(callee.twin, args, kwargs, autocast)
        return self._types[kind]


def _kind(value: Any) -> Hashable:
    """All that the type of a result may depend on."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.dim() > 0, value.device.type
    if isinstance(value, tuple | list):
        return tuple(map(_kind, value))
    if isinstance(value, dict):
        return tuple((key, _kind(one)) for key, one in value.items())
    is_number = isinstance(value, int | float | torch.SymInt | torch.SymFloat)
    return type(value).__name__ if is_number else str(value)


def _call(
    twin: Callable[..., Any] | None, args: tuple[Any, ...], kwargs: dict[str, Any], autocast: CheckedAutocast
) -> Any:
    if twin is None:
        return None
    first = args[0] if args else None
    mode: AbstractContextManager[Any] = getattr(first, "fake_mode", None) or nullcontext()
    device, dtype = autocast or ("cpu", torch.bfloat16)
    try:
        with mode, torch.no_grad(), torch.autocast(device, dtype, enabled=autocast is not None):
            result = twin(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError):
        return None
    return result.dtype if isinstance(result, torch.Tensor) else None
