# SPDX-License-Identifier: Apache-2.0
"""AdamW as a run uses it: its parameters, the learning rate of each step, and what depends on the size of a step.

In:    a model, a configuration, the number of target tokens of a step.
Out:   the optimizer; fractions of the learning rate: a linear warm-up and then a cosine (paper section 3.1); the decay
       of the second moment (beta2); a learning rate to begin a search with.
Never: a state of its own.

Small batches need a beta2 nearer to 1: what should stay the same is the number of tokens after which half of a squared
gradient is forgotten (arXiv 2507.07101). beta2 = 0.95 in steps of 2^19 tokens, which is what large models are trained
with, forgets half in 7.1 million tokens, about `HALF_LIFE`. The default recipe keeps that number, but forgets within a
tenth of the run, so that the large gradients with which healing begins don't last, and has no beta2 below `betas[1]`.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import nn

from farskip_compile.errors import ConfigError
from farskip_compile.healing.causal.ranks import TrainingRanks
from farskip_compile.healing.distill.config import DistillConfig

FUSED = ("cpu", "cuda", "xpu")
"""Devices for which torch has a fused AdamW."""
HALF_LIFE = 2**19 * math.log(0.5) / math.log(0.95)
SHARE = 0.1
"""Of the run, after which half of a squared gradient is forgotten at the latest."""
SCALE, POWER = 0.16, -1 / 3
"""The rate around which rates are tried: 0.16 / (number of trained parameters) ** (1/3). It is 2e-3 for half a million,
the best of those tried on small models, and 6e-5 and 3e-5 for 16 and 109 billion, where the paper has 2e-5 to 8e-5."""


def learning_rate_at(step: int, config: DistillConfig) -> float:
    """Fraction of the learning rate that step `step`, counted from 0, uses."""
    if step < config.warm_up_steps:
        return (step + 1) / (config.warm_up_steps + 1)
    done = (step - config.warm_up_steps) / max(config.steps - config.warm_up_steps, 1)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))
    return config.final_learning_rate + (1.0 - config.final_learning_rate) * cosine


def beta2_for(config: DistillConfig, tokens: int) -> float:
    """AdamW's second beta in a run whose steps have so many target tokens, of all ranks."""
    if config.beta2_half_life is not None:
        return 0.5 ** (tokens / config.beta2_half_life)
    if config.recipe == "paper":
        return config.betas[1]
    steps = min(HALF_LIFE / tokens, SHARE * config.steps)
    return max(config.betas[1], 0.5 ** (1 / steps))


def usual_rate(model: nn.Module, ranks: TrainingRanks) -> float:
    """A learning rate for a model of this size; the same on all ranks."""
    counts = {name: value.numel() for name, value in model.named_parameters() if value.requires_grad}
    mine = sum(count for name, count in counts.items() if name in ranks.parts)
    (parts,) = ranks.sum(mine)
    return SCALE * (sum(counts.values()) - mine + parts) ** POWER


def make_optimizer(model: nn.Module, config: DistillConfig) -> torch.optim.Optimizer:
    """AdamW over all parameters that require a gradient; matrices decay, vectors do not. The learning rate is 0.

    Raises:
        ConfigError: no parameter requires a gradient.
    """
    trained = [value for value in model.parameters() if value.requires_grad]
    if not trained:
        raise ConfigError("no parameter of the model requires a gradient", way_out="model.requires_grad_(True)")
    # one kernel for a whole group: without it the update holds temporaries as large as the parameters. It does not
    # accept DTensors together with other tensors
    fused = all(_is_fusible(value) for value in trained)
    groups = [
        {
            "params": [one for one in trained if (one.dim() >= 2, _is_spread(one)) == (is_matrix, is_spread)],
            "weight_decay": config.weight_decay if is_matrix else 0.0,
        }
        for is_matrix, is_spread in itertools.product((True, False), (False, True))
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, 0.0, config.betas, fused=fused)


def _is_spread(value: torch.Tensor) -> bool:
    return hasattr(value, "full_tensor")


def _is_fusible(value: torch.Tensor) -> bool:
    return (type(value) is nn.Parameter or _is_spread(value)) and value.device.type in FUSED
