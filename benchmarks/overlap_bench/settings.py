"""What is run in a cell: sizes of the models, tokens, and how often.

Contract: plain data, so that every rank is given the same. Widths keep the proportions of the real models where that
matters for overlap: what attention, dense and expert layers compute for each byte that is sent.

Routing. Balanced: experts have room for 1.25 times a balanced load, and exchanges are padded to that. Skewed: a router
that prefers some experts, and dropless exchanges, so that ranks get unequal loads. Llama-4 style has its matrices cut
among the ranks (tensor parallelism): every rank has a slice of every expert and no exchange. There, skew only moves the
load between experts, whose room stays what it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from overlap_bench.cells import DECODE, SKEWED, Group

CAPACITY = 1.25
SKEW = 1.0
"""Exponent of the Zipf law by which a skewed router prefers experts."""

_WIDTHS: dict[str, Any] = {"vocab_size": 1024, "experts": 8}
WIDTHS: dict[str, dict[str, Any]] = {
    # attention and dense layers in DeepSeek-V3's proportions to the width; a token has two experts instead of eight,
    # so each is larger
    "deepseek_v3": {
        **_WIDTHS,
        "hidden_size": 512,
        "heads": 16,
        "query_rank": 128,
        "kv_rank": 64,
        "nope_head_dim": 64,
        "rope_head_dim": 32,
        "value_head_dim": 64,
        "intermediate_size": 1344,
        "moe_intermediate_size": 256,
    },
    # twice the width in the heads, eight query heads to one of keys and values, as in Qwen3-30B-A3B
    "qwen3_moe": {
        **_WIDTHS,
        "hidden_size": 512,
        "heads": 16,
        "kv_heads": 2,
        "head_dim": 64,
        "moe_intermediate_size": 384,
    },
    # dense and MoE layers in turn, five query heads to one: four here; one routed and one shared expert per token
    "llama4": {
        **_WIDTHS,
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
TENSOR_PARALLEL = ("llama4",)
LAYERS = {
    "deepseek_v3": ("dense", "moe", "moe", "moe"),
    "qwen3_moe": ("moe",) * 4,
    "llama4": ("dense", "moe") * 3,
}


TOKENS = {"deepseek_v3": 1024, "qwen3_moe": 1536, "llama4": 384}
"""Of each of two ranks in prefill and training, one sequence: where a model computes little for each byte that it
sends, a longer one. Of each of four, which share the processor, half as many."""


@dataclass(frozen=True)
class Effort:
    """How large and how often."""

    layers: int
    """At most."""
    tokens: int | None
    """Of each rank in prefill and training, one sequence; None: `TOKENS`."""
    sequences: int
    """Of each rank in a decode step, one token each."""
    cached: int
    """Tokens of each sequence before the one that is decoded."""
    repetitions: int
    """Of each variant, at most."""
    seconds: float
    """After so many for a cell there are no more repetitions; but at least `LEAST`."""
    profiles: int = 3
    """Steps of each variant under the profiler; the one with the median exposure counts."""
    width: int | None = None
    """Of the residual stream; None: `WIDTHS`."""
    calibration: float = 40.0
    """Seconds to calibrate the hardware profile; 0: the shipped one is used."""
    tiny: bool = False


FULL = Effort(layers=6, tokens=None, sequences=128, cached=48, repetitions=15, seconds=90.0)
QUICK = Effort(layers=4, tokens=None, sequences=128, cached=48, repetitions=7, seconds=60.0, calibration=25.0)
SMOKE = Effort(
    layers=3, tokens=64, sequences=16, cached=8, repetitions=3, seconds=0.0, profiles=1, calibration=0.0, tiny=True
)
LEAST = 5
"""Repetitions of every variant, unless fewer are the most."""


def settings_of(group: Group, effort: Effort) -> dict[str, Any]:
    """Of the model and its step, as plain data for the ranks."""
    overrides: dict[str, Any] = {**(TINY if effort.tiny else WIDTHS[group.model])}
    if group.model == "qwen3_moe":
        overrides.pop("intermediate_size", None)
    if effort.width is not None:
        overrides["hidden_size"] = effort.width
    overrides["layers"] = list(LAYERS[group.model][: effort.layers])
    if group.routing == SKEWED:
        overrides["router_skew"] = SKEW
    tensor_parallel = group.model in TENSOR_PARALLEL
    dropless = group.routing == SKEWED and not tensor_parallel
    return {
        "model": group.model,
        "phase": group.phase,
        "tensor_parallel": tensor_parallel,
        "capacity_factor": None if dropless else CAPACITY,
        "batch": effort.sequences if group.phase == DECODE else 1,
        "tokens": 1 if group.phase == DECODE else effort.tokens or TOKENS[group.model] * 2 // group.hosts,
        "cached": effort.cached if group.phase == DECODE else 0,
        "repetitions": effort.repetitions,
        "least": min(LEAST, effort.repetitions),
        "seconds": effort.seconds,
        "profiles": effort.profiles,
        "calibration": effort.calibration,
        "overrides": overrides,
    }


def describe(group: Group, settings: dict[str, Any]) -> str:
    """Model and step in one line."""
    overrides = settings["overrides"]
    spread = f"{overrides['experts']} experts over {group.hosts} hosts, "
    spread += "padded exchange" if settings["capacity_factor"] else "dropless exchange"
    if settings["tensor_parallel"]:
        spread = f"{overrides['experts']} experts, matrices cut among {group.hosts} hosts"
    router = ", skewed router" if group.routing == SKEWED else ""
    step = f"{settings['tokens']} tokens"
    if group.phase == DECODE:
        step = f"a new token for {settings['batch']} sequences of {settings['cached']}"
    return (
        f"{group.model} style, {len(overrides['layers'])} layers, width {overrides['hidden_size']}, {spread}{router}, "
        f"{step} on each, float32"
    )
