# SPDX-License-Identifier: Apache-2.0
"""Small models in the shape of large ones, each predicted once for all tests."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

from farskip_compile.measure.simulate import Prediction, Scenario, predict, predict_each
from farskip_compile.measure.simulate.scenario import Architecture, architecture

SMALL: dict[str, dict[str, Any]] = {
    "deepseek-v3": {
        "num_hidden_layers": 4, "first_k_dense_replace": 1, "hidden_size": 512, "vocab_size": 1024,
        "intermediate_size": 1024, "moe_intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 8,
        "n_routed_experts": 32, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2, "q_lora_rank": 128,
        "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
    },
    "llama4-scout": {
        "num_hidden_layers": 3, "hidden_size": 512, "vocab_size": 1024, "intermediate_size": 512,
        "intermediate_size_mlp": 1024, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
    },
    "qwen3-30b-a3b": {
        "num_hidden_layers": 3, "hidden_size": 512, "vocab_size": 1024, "moe_intermediate_size": 128,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "num_experts": 32,
        "num_experts_per_tok": 4,
    },
}  # fmt: skip


def small(name: str) -> Architecture:
    """The architecture of this name, with small numbers."""
    whole = architecture(name)
    return replace(whole, fields={**whole.fields, **SMALL[name]})


def scenario(name: str = "deepseek-v3", **options: Any) -> Scenario:
    """Four MI300X, by default by all-reduce."""
    given: dict[str, Any] = {"device": "mi300x", "ep": 4, "tp": 4, "prompt": 512, "batch": 8, **options}
    return Scenario(model=small(name), **given)


FROM_ONE_CAPTURE: tuple[dict[str, Any], ...] = (
    {},
    {"slower": 3.0},
    {"device": "h100", "interference": 0.0},
    {"interference": 0.0},
    {"interference": 0.5},
)
"""Options that may differ between the predictions of one capture, which takes longer than the rest of a prediction."""


def predicted(name: str = "deepseek-v3", **options: Any) -> Prediction:
    """Of `scenario` with these options, in whatever order they are given."""
    if name == "deepseek-v3" and options in FROM_ONE_CAPTURE:
        return _from_one_capture()[FROM_ONE_CAPTURE.index(options)]
    return _predicted(name, tuple(sorted(options.items())))


@functools.cache
def _predicted(name: str, options: tuple[tuple[str, Any], ...]) -> Prediction:
    return predict(scenario(name, **dict(options)))


@functools.cache
def _from_one_capture() -> list[Prediction]:
    return predict_each([scenario(**options) for options in FROM_ONE_CAPTURE])
