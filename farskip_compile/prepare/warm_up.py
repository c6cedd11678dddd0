"""One eager call, for what a model makes in its first call and what can't be captured.

Contract: runs the model once without gradients, on copies of the inputs (a cache passed in is not filled). Buffers,
random numbers and mode are afterwards what they were; what the model made on the side (tables, lazily loaded kernels)
stays, that is the purpose.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


def warm_up(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Call the model once and put its state back."""
    tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
    devices = {t.device for t in (*model.parameters(), *model.buffers(), *tensors)}
    accelerators = {device.type for device in devices} - {"cpu", "meta"}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    modes = [(module, module.training) for module in model.modules()]
    forks = [
        torch.random.fork_rng(devices=[d for d in devices if d.type == kind], device_type=kind) for kind in accelerators
    ] or [torch.random.fork_rng(devices=[])]
    for fork in forks:
        fork.__enter__()
    try:
        with torch.no_grad():
            memo = {id(t): t.detach().clone() for t in tensors}  # `deepcopy` takes leaves only
            model(*copy.deepcopy(args, memo), **copy.deepcopy(kwargs, memo))
    finally:
        for fork in reversed(forks):
            fork.__exit__(None, None, None)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for module, mode in modes:
            module.training = mode
