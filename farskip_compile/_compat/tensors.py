# SPDX-License-Identifier: Apache-2.0
"""The private parts of registered operators, tensors, their storages and the nodes of autograd."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def qualified_name(packet: OpOverloadPacket) -> str:
    """`namespace::name` of an operator."""
    return str(packet._qualified_op_name)


def overload_name(operator: OpOverload) -> str:
    """Name of an overload: `default`, `Tensor`, ..."""
    return str(operator._overloadname)


def parameters(operator: OpOverload) -> list[Any]:
    """The parameters of an overload, in order: objects with `name` and `alias_info`."""
    return list(operator._schema.arguments)


def is_of_a_vmap(value: torch.Tensor) -> bool:
    """Whether `value` is what a `torch.vmap` that was traced saw inside: nothing can be made like it any more."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(value))


def storage_identity(value: torch.Tensor) -> int:
    """A number that tensors share if, and only if, they are views of the same memory, fake tensors included.

    Raises:
        NotImplementedError, RuntimeError: a wrapper subclass, which owns no storage.
    """
    return int(value.untyped_storage()._cdata)


def memory_of(value: torch.Tensor) -> object:
    """The identity of the memory of `value`, for a wrapper that of the first tensor that it wraps."""
    wrapper: Any = value
    if is_traceable_wrapper_subclass(wrapper):
        names, _ = wrapper.__tensor_flatten__()
        return memory_of(getattr(wrapper, names[0])) if names else id(value)
    try:
        return storage_identity(value)
    except (NotImplementedError, RuntimeError):
        return id(value)


def without_subclass_functions() -> AbstractContextManager[None]:
    """Inside, operators take subclasses of tensors for tensors: no `__torch_function__` of theirs is called."""
    context: AbstractContextManager[None] = torch._C.DisableTorchFunctionSubclass()
    return context


def set_sequence_number(node: Any, number: int) -> None:
    """Among nodes of autograd that are ready, the one with the highest number runs first: give `node` this one."""
    node._set_sequence_nr(number)


def in_backward() -> bool:
    """Whether autograd is running a backward pass in this thread: what runs now is a recomputed forward."""
    return bool(torch._C._current_graph_task_id() != -1)


def was_written(value: torch.Tensor) -> bool:
    """Return whether something was written into `value` since it was made, as far as PyTorch counts that."""
    return value.is_inference() or value._version > 0


def awaits_gradient(value: torch.Tensor) -> bool:
    """Return whether a hook on `value` waits for its gradient, or it is to be kept."""
    return bool(value._backward_hooks) or value.retains_grad


def local_part(value: torch.Tensor) -> torch.Tensor:
    """Return what this rank holds of a `DTensor`; any other tensor as it is."""
    local: torch.Tensor = getattr(value, "_local_tensor", value)
    return local
