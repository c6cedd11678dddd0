# SPDX-License-Identifier: Apache-2.0
"""Small checkpoints with random weights, as transformers saves them, for vLLM to serve.

Contract: `make` writes one into a folder, the same weights each time; with a tokenizer that was trained on
`tests.prose`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from tests.prose import PROSE

VOCABULARY = 512
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
    "num_experts_per_tok": 2,
    "num_attention_heads": 4,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 32}
LATENT = {"num_key_value_heads": 4, "q_lora_rank": None, "kv_lora_rank": 512, "v_head_dim": 128}
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "qwen3_moe": (
        "Qwen3Moe",
        {**GROUPED, "intermediate_size": 256, "moe_intermediate_size": 64, "num_experts": 8, "norm_topk_prob": True},
        {},
    ),
    "mixtral": ("Mixtral", {**GROUPED, "intermediate_size": 64, "num_local_experts": 8}, {}),
    "gpt_oss": ("GptOss", {**GROUPED, "intermediate_size": 64, "num_local_experts": 8, "sliding_window": 64}, {}),
    "granitemoe": (
        "GraniteMoe",
        {"num_key_value_heads": 2, "intermediate_size": 64, "num_local_experts": 8, "residual_multiplier": 0.5},
        {},
    ),
    "deepseek_v3": (
        "DeepseekV3",
        {
            **LATENT,
            "intermediate_size": 256,
            "moe_intermediate_size": 64,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "routed_scaling_factor": 1.0,
        },
        {"topk_method": "noaux_tc", "scoring_func": "sigmoid"},
    ),
}
"""Prefix of the classes, configuration, and keys that vLLM reads and transformers does not write."""


def make(family: str, folder: Path, **changes: Any) -> Any:
    """Write the checkpoint, with `changes` to its configuration; returns the model."""
    import transformers

    prefix, own, extra = FAMILIES[family]
    config = getattr(transformers, f"{prefix}Config")(**{**COMMON, **own, **changes})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0, 0.08)
            elif "norm" in name:
                parameter.normal_(1, 0.1)
        for name, buffer in model.named_buffers():
            if "correction_bias" in name:
                buffer.normal_(0, 0.05)
    model.save_pretrained(folder)
    words = tokenizer()
    words.add_tokens([f"<added_{number}>" for number in range(config.vocab_size - VOCABULARY)])
    words.save_pretrained(folder)
    edit(folder, extra)
    return model


def edit(folder: Path, keys: dict[str, Any]) -> None:
    """Put `keys` into the `config.json` of a checkpoint."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}, indent=2))


def tokenizer() -> Any:
    """A byte-level tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    found = Tokenizer(models.BPE(unk_token=None, byte_fallback=False))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    special = ["<bos>", "<eos>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet)
    found.train_from_iterator(PROSE.splitlines(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=found, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
