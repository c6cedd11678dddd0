"""AdamW and its learning rate: a linear warm-up, then a cosine (paper section 3.1).

Contract: from a model and a configuration come an optimizer and a scheduler of torch, whose states say all that a later
run needs to go on.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from farskip_compile.distill.config import DistillConfig
from farskip_compile.errors import ConfigError

FUSED = ("cpu", "cuda", "xpu")
"""Devices for which torch has a fused AdamW."""


def learning_rate_at(step: int, config: DistillConfig) -> float:
    """Part of the learning rate with which step `step`, counted from 0, is taken."""
    if step < config.warm_up_steps:
        return (step + 1) / (config.warm_up_steps + 1)
    done = (step - config.warm_up_steps) / max(config.steps - config.warm_up_steps, 1)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))
    return config.final_learning_rate + (1.0 - config.final_learning_rate) * cosine


def make_optimizer(
    model: nn.Module, config: DistillConfig
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW over all parameters that require a gradient; matrices decay, vectors do not.

    Raises:
        ConfigError: no parameter requires a gradient.
    """
    trained = [value for value in model.parameters() if value.requires_grad]
    if not trained:
        raise ConfigError("no parameter of the model requires a gradient", way_out="model.requires_grad_(True)")
    groups = [
        {"params": [value for value in trained if value.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [value for value in trained if value.dim() < 2], "weight_decay": 0.0},
    ]
    # one kernel for all of a group: without it the update holds temporaries as large as the parameters. It does not
    # take DTensors beside other ones
    fused = all(type(value) is nn.Parameter and value.device.type in FUSED for value in trained)
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]], config.learning_rate, config.betas, fused=fused
    )
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_at(step, config))
