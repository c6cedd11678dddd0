"""Is a module or function compiled already? The three ways to compile a module leave three different traces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch._dynamo import OptimizedModule


def is_compiled(model: Callable[..., Any]) -> bool:
    """By `torch.compile(model)`, or a module by `module.compile()` or `module.forward = torch.compile(module.forward)`.

    Modules inside of it are not looked at.
    """
    if not isinstance(model, nn.Module):
        return _is_compiled_function(model)
    return (
        isinstance(model, OptimizedModule)
        or getattr(model, "_compiled_call_impl", None) is not None
        or _is_compiled_function(model.forward)
    )


def _is_compiled_function(function: Callable[..., Any]) -> bool:
    """What is kept from being compiled is wrapped by Dynamo as well, and says so."""
    wrapped = hasattr(function, "_torchdynamo_orig_callable")
    return wrapped and not getattr(function, "_torchdynamo_disable", False)
