"""Plain Mixture-of-Experts models and their hand-written FarSkip forms.

Contract: neither the models nor the hand-written forms use the compiler: its results are compared with them. Start at
`decoder.py`, then `farskip_form.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from farskip_compile.errors import ConfigError
from farskip_compile.models import deepseek_v3, llama4, mixtral, qwen3_moe
from farskip_compile.models.cache import KeyValueCache
from farskip_compile.models.config import ModelConfig, ParallelConfig
from farskip_compile.models.decoder import Decoder, build_decoder
from farskip_compile.models.expert_load import load_per_expert
from farskip_compile.models.farskip_form import FarSkipForm
from farskip_compile.models.overlapped_form import OverlappedForm

__all__ = [
    "MODELS",
    "Decoder",
    "FarSkipForm",
    "KeyValueCache",
    "ModelConfig",
    "OverlappedForm",
    "ParallelConfig",
    "build",
    "build_decoder",
    "load_per_expert",
]

MODELS: dict[str, Callable[..., ModelConfig]] = {
    "deepseek_v3": deepseek_v3.config,
    "qwen3_moe": qwen3_moe.config,
    "llama4": llama4.config,
    "mixtral": mixtral.config,
}
"""Presets by name; each takes fields of `ModelConfig` as overrides."""


def build(
    name: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    parallel: ParallelConfig | None = None,
    **overrides: Any,
) -> Decoder:
    """A preset by name with seeded weights, or this rank's slice of it.

    Args:
        name: a key of `MODELS`.
        seed: of the weights; equal seeds give equal models.
        dtype: of all weights.
        device: of the weights.
        parallel: the ranks that share the model; None: this process has all of it.
        **overrides: fields of `ModelConfig`.
    """
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}", way_out=f"choose one of {', '.join(MODELS)}")
    return build_decoder(MODELS[name](**overrides), seed=seed, dtype=dtype, device=device, parallel=parallel)
