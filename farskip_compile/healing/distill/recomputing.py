# SPDX-License-Identifier: Apache-2.0
"""Gradient checkpointing of a model of transformers, for the duration of a run.

In:    a model with transformers' method for it.
Out:   `check_recomputing`: whether it has one; `recomputing`: within it, layers are computed again in the backward
       pass, instead of keeping what is inside of them.
Never: a trace of it in the model afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from farskip_compile.errors import ConfigError

METHODS = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
"""The newer name, if the installed version has it: the older one warns there."""


def check_recomputing(model: nn.Module) -> Callable[..., Any]:
    """The method of the model that makes it recompute.

    Raises:
        ConfigError: it has none, or says that it does not support that.
    """
    method = next((getattr(model, name) for name in METHODS if hasattr(model, name)), None)
    if method is None or not getattr(model, "supports_gradient_checkpointing", True):
        raise ConfigError(
            f"{type(model).__name__} has no gradient checkpointing that can be switched on",
            way_out="gradient_checkpointing=False, with torch.utils.checkpoint in the model itself; or smaller batches",
        )
    return method


@contextmanager
def recomputing(model: nn.Module, *, wanted: bool) -> Iterator[None]:
    """If it is wanted, let `model` recompute; what the method sets in its modules is put back."""
    if not wanted:
        yield
        return
    before = {module: dict(vars(module)) for module in model.modules()}
    check_recomputing(model)({"use_reentrant": False})
    set_by_it = {
        module: [name for name, value in vars(module).items() if name not in state or value is not state[name]]
        for module, state in before.items()
    }
    try:
        yield
    finally:
        for module, names in set_by_it.items():
            for name in names:
                del vars(module)[name]
                if name in before[module]:
                    vars(module)[name] = before[module][name]
