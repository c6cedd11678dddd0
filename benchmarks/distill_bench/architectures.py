# SPDX-License-Identifier: Apache-2.0
"""The two models of the experiment: in the style of DeepSeek-V3, with shared experts, and of Qwen3-MoE, without.

In:    a scale and a seed.
Out:   an unmodified model of transformers with random weights, prepared for capture; and its parallel form for the
       plan: the same layers at production widths, with experts spread over ranks, on the meta device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import farskip_compile
from distill_bench.rows import WITH_SHARED, Scale
from farskip_compile.models import ParallelConfig, build

EXPERTS, TOP_K = 8, 2
MODELS = ("deepseek_v3", "qwen3_moe")


def new_model(name: str, scale: Scale, seed: int) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **_fields(name, scale)))
    farskip_compile.prepare(model)
    return model


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def parallel_model(name: str, scale: Scale, group: Any) -> nn.Module:
    """With the sub-blocks of `new_model`, experts spread over `group`, on the meta device."""
    kinds = ("dense", *("moe",) * (scale.layers - 1)) if name in WITH_SHARED else ("moe",) * scale.layers
    return build(
        name,
        vocab_size=32_768,
        hidden_size=2048,
        intermediate_size=6144,
        moe_intermediate_size=1024,
        layers=kinds,
        experts=64,
        top_k=6,
        dtype=torch.bfloat16,
        parallel=ParallelConfig(ep_group=group),
        device="meta",
        **_PARALLEL[name],
    )


def _fields(name: str, scale: Scale) -> dict[str, Any]:
    head = scale.hidden // 4
    common = {
        "vocab_size": scale.vocabulary,
        "hidden_size": scale.hidden,
        "moe_intermediate_size": scale.hidden // 12 * 8,
        "num_hidden_layers": scale.layers,
        "num_attention_heads": 4,
        "num_experts_per_tok": TOP_K,
        "max_position_embeddings": 4 * scale.sequence,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    if name == "qwen3_moe":
        return {**common, "num_key_value_heads": 2, "head_dim": head, "num_experts": EXPERTS, "norm_topk_prob": True}
    return {
        **common,
        "intermediate_size": 3 * scale.hidden,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.0,
        "q_lora_rank": scale.hidden // 2,
        "kv_lora_rank": scale.hidden // 2,
        "qk_nope_head_dim": head - 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": head,
    }


_PARALLEL: dict[str, dict[str, Any]] = {
    "deepseek_v3": {
        "heads": 16,
        "query_rank": 1024,
        "kv_rank": 512,
        "nope_head_dim": 128,
        "rope_head_dim": 64,
        "value_head_dim": 128,
        "shared_experts": 1,
        "router_groups": 1,
        "router_top_groups": 1,
    },
    "qwen3_moe": {"heads": 16, "kv_heads": 4, "head_dim": 128},
}
