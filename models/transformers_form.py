# SPDX-License-Identifier: Apache-2.0
"""The full FarSkip form of an unmodified `transformers` DeepSeek-V3, written by hand: a second oracle.

Contract: uses the sub-modules of the given model, and adds in the order of transformers, so that results can be
compared bit for bit. `transformers` is imported only when a function is called.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class TransformersFarSkipForm(nn.Module):
    """The form of a `DeepseekV3ForCausalLM`: ids [B, T] -> logits [B, T, vocabulary], without cache or padding."""

    def __init__(self, hf_model: Any) -> None:
        super().__init__()
        self.hf_model = hf_model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Two streams: x is everything, n leaves out the routed experts of the previous layer."""
        from transformers.masking_utils import create_causal_mask

        model = self.hf_model.model
        x = model.embed_tokens(input_ids)  # [B, T, D]
        positions = torch.arange(x.shape[1], device=x.device).unsqueeze(0)  # [1, T]
        mask = create_causal_mask(model.config, x, None, None, position_ids=positions)
        rope = model.rotary_emb(x, positions)
        n = x
        for layer in model.layers:
            a, _ = layer.self_attn(
                hidden_states=layer.input_layernorm(n), position_embeddings=rope, attention_mask=mask
            )
            h = layer.post_attention_layernorm(x)
            x_and_a = x + a
            if hasattr(layer.mlp, "experts"):
                routed, shared = self._routed(layer.mlp, h), layer.mlp.shared_experts(h)
                x, n = x_and_a + (routed + shared), x_and_a + shared
            else:
                x = n = x_and_a + layer.mlp(h)
        return self.hf_model.lm_head(model.norm(x))

    @staticmethod
    def _routed(moe: Any, h: torch.Tensor) -> torch.Tensor:
        """Return the output of the routed experts alone, [B, T, D]."""
        _, weights, experts = moe.gate(h)
        return moe.experts(h.view(-1, h.shape[-1]), experts, weights).view(h.shape)


def tiny_deepseek_v3(layers: int = 4, seed: int = 0) -> Any:
    """Return a random `DeepseekV3ForCausalLM`, small enough for tests; its first layer is dense."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    config = DeepseekV3Config(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        moe_intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_shared_experts=1,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_group=4,
        topk_group=2,
        first_k_dense_replace=1,
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        max_position_embeddings=128,
        initializer_range=0.1,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DeepseekV3ForCausalLM(config).eval()
