# SPDX-License-Identifier: Apache-2.0
"""A model of transformers with two layers, and its checkpoint with a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

import farskip_compile

IDS = torch.randint(0, 64, (2, 6), generator=torch.Generator().manual_seed(0))


def tiny(*, prepared: bool = True) -> Any:
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.MixtralForCausalLM(config).eval()
    if prepared:
        farskip_compile.prepare(model)
    return model


def checkpoint(model: Any, folder: Path, **options: Any) -> Path:
    """`model` saved with the manifest of its full FarSkip form."""
    model.save_pretrained(folder)
    farskip_compile.save_manifest(farskip_compile.describe(model, IDS), folder, **options)
    return folder


def compiled(model: Any, **options: Any) -> Any:
    return torch.compile(model, backend="farskip", fullgraph=True, options={"inner": "eager", **options})
