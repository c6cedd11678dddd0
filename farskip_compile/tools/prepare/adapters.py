# SPDX-License-Identifier: Apache-2.0
"""Adapters of PEFT on experts, whose weights are added without registering a parametrization in each call.

Contract: a model comes in, changes go out. PEFT adapts a stacked weight (`target_parameters`) by a wrapper, which in
each forward registers a parametrization on the module inside and takes it away again; Dynamo can't capture that. The
wrapper gets a forward that computes the same weight, and calls the module inside with it in the place of its own
(`torch.func.functional_call`). Parameters, names and states stay as they are. Where adapters are switched off or
merged, PEFT's forward runs, which then registers nothing.
"""

from __future__ import annotations

import sys
from types import MethodType
from typing import Any

import torch
from torch import nn

from farskip_compile.tools.prepare.changes import Change, named

MARK = "farskip_adapted"


def is_adapter(module: nn.Module) -> bool:
    """Return whether PEFT has put `module` around another one."""
    if "peft" not in sys.modules:
        return False
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(module, BaseTunerLayer)


def keep_parametrizations(model: nn.Module) -> list[Change]:
    """Set the forward of each wrapper of a parameter in `model`."""
    from peft.tuners.lora.layer import ParamWrapper

    wrappers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, ParamWrapper) and not hasattr(vars(module).get("forward"), MARK)
    }
    if not wrappers:
        return []
    for module in wrappers.values():
        vars(module)["forward"] = MethodType(_capturable_forward(type(module)), module)

    def restore() -> None:
        for module in wrappers.values():
            vars(module).pop("forward", None)

    return [
        Change(
            what=f"adapters of parameters in {named([*wrappers])}",
            before="a parametrization is registered in each call, and taken away again",
            after="the module inside is called with the adapted weight",
            why="changes of a module can't be captured",
            restore=restore,
        )
    ]


def _capturable_forward(cls: Any) -> Any:
    """Return the forward of a wrapper class of PEFT, which calls the module inside with the adapted weight."""
    plain = cls.forward

    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        active = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or kwargs.get("adapter_names") is not None or not active:
            return plain(self, x, *args, **kwargs)
        kwargs.pop("adapter_names", None)
        name, inner = self.parameter_name, self.base_layer
        while isinstance(inner, cls):  # a wrapper for each parameter, one in the other
            name, inner = f"base_layer.{name}", inner.base_layer
        return torch.func.functional_call(self.base_layer, {name: _adapted_weight(self, active)}, (x, *args), kwargs)

    setattr(forward, MARK, True)
    return forward


def _adapted_weight(wrapper: Any, active: list[str]) -> torch.Tensor:
    """Return the weight as PEFT computes it: with one adapter for stacked experts in one product, else by adding."""
    weight: torch.Tensor = wrapper.get_param()
    if len(active) == 1 and wrapper.num_experts > 1 and hasattr(wrapper, "get_delta_factors") and weight.itemsize > 1:
        left, right, scaling = wrapper.get_delta_factors(active[0])
        with torch.autocast(device_type=weight.device.type, enabled=False):
            return torch.baddbmm(weight, left, right, alpha=scaling)
    delta = wrapper.get_delta_weight(active[0])
    for name in active[1:]:
        delta = delta + wrapper.get_delta_weight(name)
    return weight + delta
