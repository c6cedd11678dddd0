# SPDX-License-Identifier: Apache-2.0
"""Small models and data for distillation, in float64 and with the eager inner backend: bits can be compared."""

from __future__ import annotations

import torch

from farskip_compile.models import Decoder, build

VOCABULARY = 32
EAGER = {"inner": "eager"}


def small(seed: int = 0, **more) -> Decoder:
    more = {"layers": ("moe", "moe"), "shared_experts": 1, "hidden_size": 16, **more}
    model = build("deepseek_v3", seed=seed, vocab_size=VOCABULARY, dtype=torch.float64, **more)
    with torch.no_grad():  # at its start a model says nearly nothing, and FarSkip nearly the same
        for value in model.parameters():
            value.mul_(1.5)
    return model


def batches(count: int, seed: int = 1, size: int = 2, length: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCABULARY, (size, length), generator=generator) for _ in range(count)]


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}
