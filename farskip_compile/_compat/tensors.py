"""The private parts of tensors, their storages and the nodes of autograd; a part of `_compat`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

__all__ = ["set_sequence_number", "storage_identity", "without_subclass_functions"]


def storage_identity(value: torch.Tensor) -> int:
    """A number that tensors share if, and only if, they are views of the same memory, fake tensors included.

    Raises:
        NotImplementedError, RuntimeError: a wrapper subclass, which owns no storage.
    """
    return int(value.untyped_storage()._cdata)


def without_subclass_functions() -> AbstractContextManager[None]:
    """Inside, operators take subclasses of tensors for tensors: no `__torch_function__` of theirs is called."""
    context: AbstractContextManager[None] = torch._C.DisableTorchFunctionSubclass()
    return context


def set_sequence_number(node: Any, number: int) -> None:
    """Among nodes of autograd that are ready, the one with the highest number runs first: give `node` this one."""
    node._set_sequence_nr(number)
