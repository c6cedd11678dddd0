# SPDX-License-Identifier: Apache-2.0
"""What is run in a cell: model sizes, tokens, and repetitions.

Contract: plain data, the same for every rank. Widths keep the proportions of the real models where that matters for
overlap: what attention, shared and routed experts compute, and how much an exchange sends of what a rank
holds. Of a rank of DeepSeek-V3 with a 64th of the experts (54.7 GB in bfloat16, 20.4 of them experts) that is 1.1 % at
4096 tokens (587 MB) and 2.1 % at 8192; of Qwen3-235B 1.5 % at 4096. With as few layers that takes many experts, each of
which gets few rows.

Routing. Balanced: experts have room for 1.25 times a balanced load, and exchanges are padded to that. Skewed: a router
that prefers some experts, and dropless exchanges, so that ranks get unequal loads. Llama-4 style has its matrices cut
among the ranks (tensor parallelism): every rank has a slice of every expert and no exchange. There skew only moves the
load between experts, whose room stays the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from overlap_bench.cells import DECODE, LONG, SKEWED, TENSOR_PARALLEL, Group

CAPACITY = 1.25
SKEW = 1.0
"""Exponent of the Zipf law by which a skewed router prefers experts."""

DROPLESS_EXPERTS = 16
"""Without drops, where each expert's products are calls of their own, and take the compiler their time."""
SEQUENCES = 2
"""Of each rank in prefill and training: a batch that could be divided."""

_DEEPSEEK: dict[str, Any] = {
    "vocab_size": 1024,
    "hidden_size": 512,
    "heads": 24,
    "query_rank": 128,
    "kv_rank": 64,
    "nope_head_dim": 64,
    "rope_head_dim": 32,
    "value_head_dim": 96,  # as wide as queries, as flash kernels want them: no scores in memory
    "intermediate_size": 1344,
}
WIDTHS: dict[str, dict[str, Any]] = {
    # by FLOPs at 4096 tokens the layers of the real one compute .41, .07 and .53 in attention, shared and routed
    # experts, and so do these, measured (`shares.py`): fewer and wider experts, of which each token takes six
    "deepseek_v3": {**_DEEPSEEK, "experts": 128, "top_k": 6, "moe_intermediate_size": 448},
    # heads of twice the width in all, eight query heads per key-value head, as in Qwen3; .41, 0 and .59
    "qwen3_moe": {
        "vocab_size": 1024,
        "hidden_size": 512,
        "heads": 16,
        "kv_heads": 2,
        "head_dim": 64,
        "experts": 128,
        "top_k": 4,
        "moe_intermediate_size": 384,
    },
    # twice the tokens, two small experts for each: nearly all is attention
    LONG: {**_DEEPSEEK, "experts": 64, "moe_intermediate_size": 256},
    # alternating dense and MoE layers, five query heads per key-value head: four here; one routed and one shared expert
    # per token
    "llama4": {
        "vocab_size": 1024,
        "experts": 8,
        "hidden_size": 1536,
        "heads": 48,
        "kv_heads": 12,
        "head_dim": 32,
        "intermediate_size": 4800,
        "moe_intermediate_size": 2400,
    },
}
TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "heads": 4,
    "kv_heads": 4,
    "experts": 8,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
}
"""For smoke runs: the presets' widths but these."""
LAYERS = {
    "deepseek_v3": ("dense", "moe", "moe", "moe"),
    LONG: ("dense", "moe", "moe", "moe"),
    "qwen3_moe": ("moe",) * 4,
    "llama4": ("dense", "moe") * 3,
}


TOKENS = {"deepseek_v3": 512, "qwen3_moe": 512, "llama4": 192, LONG: 1024}
"""Of each sequence of two ranks in prefill and training. Half as many for each of four ranks, which share the
processor."""


@dataclass(frozen=True)
class Effort:
    """How large and how often."""

    layers: int
    """At most."""
    tokens: int | None
    """Of each sequence in prefill and training; None: `TOKENS`."""
    sequences: int
    """Per rank in a decode step, one token each."""
    cached: int
    """Tokens of each sequence before the decoded one."""
    repetitions: int
    """Of each variant, at most."""
    seconds: float
    """Time limit for a cell's repetitions; at least `LEAST` are made."""
    profiles: int = 3
    """Steps of each variant under the profiler; the one with the median exposure counts."""
    width: int | None = None
    """Of the residual stream; None: `WIDTHS`."""
    calibration: float = 40.0
    """Seconds to calibrate the hardware profile; 0: use the shipped one."""
    tiny: bool = False
    selection: str | None = None
    """Measure these of `cells.SELECTIONS` in place of the usual variants."""


FULL = Effort(layers=6, tokens=None, sequences=128, cached=48, repetitions=15, seconds=90.0)
QUICK = Effort(layers=4, tokens=None, sequences=128, cached=48, repetitions=7, seconds=60.0, calibration=25.0)
SMOKE = Effort(
    layers=3, tokens=64, sequences=16, cached=8, repetitions=3, seconds=0.0, profiles=1, calibration=0.0, tiny=True
)
LEAST = 5
"""Least repetitions of every variant, unless the maximum is lower."""


def settings_of(group: Group, effort: Effort) -> dict[str, Any]:
    overrides: dict[str, Any] = {**(TINY if effort.tiny else WIDTHS[group.model])}
    if group.model == "qwen3_moe":
        overrides.pop("intermediate_size", None)
    if effort.width is not None:
        overrides["hidden_size"] = effort.width
    if group.routing == SKEWED and not effort.tiny:
        overrides["experts"] = DROPLESS_EXPERTS
    overrides["layers"] = list(LAYERS[group.model][: effort.layers])
    if group.routing == SKEWED:
        overrides["router_skew"] = SKEW
    tensor_parallel = group.model in TENSOR_PARALLEL
    dropless = group.routing == SKEWED and not tensor_parallel
    return {
        "model": group.model.partition("-")[0],
        "phase": group.phase,
        "tensor_parallel": tensor_parallel,
        "capacity_factor": None if dropless else CAPACITY,
        "batch": effort.sequences if group.phase == DECODE else SEQUENCES,
        "tokens": 1 if group.phase == DECODE else effort.tokens or TOKENS[group.model] * 2 // group.hosts,
        "cached": effort.cached if group.phase == DECODE else 0,
        **{name: getattr(effort, name) for name in ("repetitions", "seconds", "profiles", "calibration", "selection")},
        "least": min(LEAST, effort.repetitions),
        "overrides": overrides,
    }


def describe(group: Group, settings: Mapping[str, Any]) -> str:
    overrides = settings["overrides"]
    spread = f"{overrides['experts']} experts over {group.hosts} hosts, "
    spread += "padded exchange" if settings["capacity_factor"] else "dropless exchange"
    if settings["tensor_parallel"]:
        spread = f"{overrides['experts']} experts, matrices cut among {group.hosts} hosts"
    router = ", skewed router" if group.routing == SKEWED else ""
    step = f"{settings['batch']} sequences of {settings['tokens']} tokens"
    if group.phase == DECODE:
        step = f"a new token for {settings['batch']} sequences of {settings['cached']}"
    return (
        f"{group.model} style, {len(overrides['layers'])} layers, width {overrides['hidden_size']}, {spread}{router}, "
        f"{step} on each, float32"
    )
