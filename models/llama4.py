"""A small Llama-4: dense and MoE layers in turn, one routed and one shared expert for each token.

Contract: `config(**overrides)` is the preset, `build(...)` the model with seeded weights.
"""

from __future__ import annotations

from typing import Any

import torch

from farskip_compile.models.config import ModelConfig, ParallelConfig
from farskip_compile.models.decoder import Decoder, build_decoder


def config(**overrides: Any) -> ModelConfig:
    """The preset; any field of `ModelConfig` can be replaced."""
    preset: dict[str, Any] = {
        "layers": ("dense", "moe", "dense", "moe"),
        "attention": "gqa",
        "rope_theta": 500_000.0,
        "experts": 4,
        "top_k": 1,
        "moe_intermediate_size": 64,
        "shared_experts": 1,
        "router": "sigmoid_top1",
    }
    return ModelConfig(**(preset | overrides))


def build(
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    parallel: ParallelConfig | None = None,
    **overrides: Any,
) -> Decoder:
    """The model with seeded weights, or this rank's slice of it."""
    return build_decoder(config(**overrides), seed=seed, dtype=dtype, device=device, parallel=parallel)
