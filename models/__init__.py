# SPDX-License-Identifier: Apache-2.0
"""Plain Mixture-of-Experts models and the FarSkip forms written by hand.

Contract: neither models nor forms use the compiler, whose results are compared with theirs. Start at `decoder.py`, then
`farskip_form.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from farskip_compile.errors import ConfigError
from farskip_compile.models.config import ModelConfig, ParallelConfig
from farskip_compile.models.decoder import Decoder, build_decoder
from farskip_compile.models.farskip_form import FarSkipForm

__all__ = [
    "MODELS",
    "Decoder",
    "FarSkipForm",
    "ModelConfig",
    "ParallelConfig",
    "build",
]

MODELS: dict[str, Callable[..., ModelConfig]] = {
    # latent attention, a first dense layer, experts chosen by groups, one shared expert
    "deepseek_v3": partial(
        ModelConfig,
        layers=("dense", "moe", "moe", "moe"),
        attention="mla",
        shared_experts=1,
        router="sigmoid_groups",
        router_groups=4,
        router_top_groups=2,
        routed_scaling_factor=2.5,
    ),
    # grouped-query attention with normed queries and keys, and no shared expert
    "qwen3_moe": partial(ModelConfig, qk_norm=True, rope_theta=1_000_000.0),
    # dense and MoE layers in turn, one routed and one shared expert for each token
    "llama4": partial(
        ModelConfig,
        layers=("dense", "moe", "dense", "moe"),
        rope_theta=500_000.0,
        experts=4,
        top_k=1,
        moe_intermediate_size=64,
        shared_experts=1,
        router="sigmoid_top1",
    ),
    # few wide experts, a softmax over the two chosen ones, and no shared expert
    "mixtral": partial(ModelConfig, norm_epsilon=1e-5, rope_theta=1_000_000.0, experts=4, moe_intermediate_size=64),
}
"""Small presets by name; each takes fields of `ModelConfig` as overrides, and has its defaults otherwise."""


def build(
    name: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    parallel: ParallelConfig | None = None,
    **overrides: Any,
) -> Decoder:
    """Return a preset by name with seeded weights, or this rank's slice of it.

    Args:
        name: a key of `MODELS`.
        seed: of the weights; equal seeds give equal models.
        dtype: of all weights.
        device: of the weights.
        parallel: the ranks that share the model; None: this process has all of it.
        **overrides: fields of `ModelConfig`.

    Raises:
        ConfigError: an unknown name, or fields that contradict each other.
        ParallelismError: experts, heads or widths can't be divided among the ranks.
    """
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}", way_out=f"choose one of {', '.join(MODELS)}")
    return build_decoder(MODELS[name](**overrides), seed=seed, dtype=dtype, device=device, parallel=parallel)
