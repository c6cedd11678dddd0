"""A small DeepSeek-V3: latent attention, a first dense layer, experts chosen by groups, one shared expert.

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
        "layers": ("dense", "moe", "moe", "moe"),
        "attention": "mla",
        "experts": 8,
        "top_k": 2,
        "shared_experts": 1,
        "router": "sigmoid_groups",
        "router_groups": 4,
        "router_top_groups": 2,
        "routed_scaling_factor": 2.5,
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
