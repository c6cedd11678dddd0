"""The private parts of `nn.Module`; a part of `_compat`."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from torch import nn

__all__ = ["child_names", "forward_hooks"]


def child_names(module: nn.Module) -> set[str]:
    """Names of the modules directly in `module`; one that has several names has all of them here."""
    return set(module._modules)


def forward_hooks(module: nn.Module) -> MutableMapping[int, Any]:
    """The hooks after the forward of `module`, by number; what is taken out of it is removed."""
    return module._forward_hooks
