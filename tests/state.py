# SPDX-License-Identifier: Apache-2.0
"""All state of a model, as plain data that can be compared: nothing that ran in between may have changed it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import nn


def everything_of(model: nn.Module) -> dict[str, Any]:
    """Parameters and buffers to the byte, with their identity; modes, hooks, plain attributes, random numbers."""
    found: dict[str, Any] = {
        "torch": _bytes(torch.get_rng_state()),
        "python": random.getstate(),
        "numpy": str(np.random.get_state()),
    }
    for name, part in model.named_modules():
        tensors = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
        for key, one in tensors:
            gradient = None if one.grad is None else _bytes(one.grad)
            found[f"{name}.{key}"] = (id(one), one.data_ptr(), one.requires_grad, gradient, _bytes(one))
        for key, value in vars(part).items():
            if isinstance(value, dict | list | set):
                value = [str(one) if isinstance(one, int | str) else id(one) for one in value]
            if isinstance(value, torch.Tensor):
                value = (id(value), _bytes(value))
            known = isinstance(value, bool | int | float | str | tuple | list | None)
            found[f"{name}: {key}"] = value if known else id(value)
    return found


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
