# SPDX-License-Identifier: Apache-2.0
"""A Qwen2-MoE of transformers with two layers, and its full FarSkip form by hand, whatever is around its parts.

Contract: `qwen2_form` calls the modules of the model, so that adapters and converted layers in their places take part,
and adds in the order of transformers, so that results can be compared bit for bit. It shares no code with the compiler.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers.masking_utils import create_causal_mask

import farskip_compile

COMMON: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "num_experts_per_tok": 2, "initializer_range": 0.2,
    "pad_token_id": 0, "eos_token_id": None, "bos_token_id": None, "use_cache": False,
}  # fmt: skip


def qwen2(dtype: torch.dtype = torch.float64) -> Any:
    """Prepared, with routed and shared experts in both layers."""
    torch.manual_seed(0)
    config = transformers.Qwen2MoeConfig(**COMMON, num_experts=4, shared_expert_intermediate_size=16)
    model = transformers.Qwen2MoeForCausalLM(config).to(dtype).eval()
    farskip_compile.prepare(model)
    return model


def qwen2_form(causal: Any, ids: torch.Tensor) -> torch.Tensor:
    """Token ids [B, T] -> logits [B, T, vocabulary]. x is everything, n is without the routed experts of the layer
    before."""
    model = causal.model
    x = n = model.embed_tokens(ids)  # [B, T, D]
    positions = torch.arange(ids.shape[1]).unsqueeze(0)
    mask = create_causal_mask(model.config, x, None, None, position_ids=positions)
    rope = model.rotary_emb(x, positions)
    for layer in model.layers:
        a, _ = layer.self_attn(hidden_states=layer.input_layernorm(n), position_embeddings=rope, attention_mask=mask)
        h = layer.post_attention_layernorm(x).flatten(0, 1)
        _, weights, chosen = layer.mlp.gate(h)
        shared = torch.sigmoid(layer.mlp.shared_expert_gate(h)) * layer.mlp.shared_expert(h)
        routed = layer.mlp.experts(h, chosen, weights)
        x, n = (x + a) + (routed + shared).view_as(x), (x + a) + shared.view_as(x)
    logits: torch.Tensor = causal.lm_head(model.norm(x))
    return logits
