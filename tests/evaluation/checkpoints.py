# SPDX-License-Identifier: Apache-2.0
"""Two tiny checkpoints with a tokenizer: an original, and one with other weights and a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import farskip_compile

END = "<end>"
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def tokenizer() -> Any:
    """One token for each byte."""
    found = Tokenizer(models.BPE({token: number for number, token in enumerate([END, *BYTES])}, []))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens([END])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=found, eos_token=END)


def model(seed: int = 0) -> Any:
    """Two layers of attention and experts."""
    torch.manual_seed(seed)
    config = transformers.MixtralConfig(
        vocab_size=len(BYTES) + 1,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        initializer_range=0.2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=0,
    )
    return transformers.MixtralForCausalLM(config).eval()


def save(found: Any, folder: Path) -> Path:
    found.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def save_healed(found: Any, folder: Path, connectivity: Any = "full", **options: Any) -> Path:
    """With the manifest of its FarSkip form."""
    save(found, folder)
    farskip_compile.prepare(found)
    ids = torch.arange(12).view(2, 6)
    manifest = farskip_compile.describe(found, ids, connectivity=connectivity, use_cache=False)
    farskip_compile.save_manifest(manifest, folder, **options)
    return folder
