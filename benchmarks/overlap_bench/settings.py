"""What is run in a cell: model sizes, tokens, and repetitions.

Contract: plain data, the same for every rank. Widths keep the proportions of the real models where that matters for
overlap: what attention, dense and expert layers compute per byte sent.

Routing. Balanced: experts have room for 1.25 times a balanced load, and exchanges are padded to that. Skewed: a router
that prefers some experts, and dropless exchanges, so that ranks get unequal loads. Llama-4 style has its matrices cut
among the ranks (tensor parallelism): every rank has a slice of every expert and no exchange. There skew only moves the
load between experts, whose room stays the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from overlap_bench.cells import DECODE, REAL, SKEWED, Group

CAPACITY = 1.25
SKEW = 1.0
"""Exponent of the Zipf law by which a skewed router prefers experts."""

_WIDTHS: dict[str, Any] = {"vocab_size": 1024, "experts": 8}
_DEEPSEEK: dict[str, Any] = {
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
}
WIDTHS: dict[str, dict[str, Any]] = {
    # attention and dense layers proportional to the width as in DeepSeek-V3; two experts per token instead of eight, so
    # each is larger
    "deepseek_v3": _DEEPSEEK,
    # attention, shared and routed experts compute .41, .07 and .53 of a layer, as at 4096 tokens in the real one: more
    # and wider experts, of which each token takes six
    REAL: {**_DEEPSEEK, "experts": 16, "top_k": 6, "moe_intermediate_size": 704},
    # heads of twice the width in all, eight query heads per key-value head, as in Qwen3-30B-A3B
    "qwen3_moe": {
        **_WIDTHS,
        "hidden_size": 512,
        "heads": 16,
        "kv_heads": 2,
        "head_dim": 64,
        "moe_intermediate_size": 384,
    },
    # alternating dense and MoE layers, five query heads per key-value head: four here; one routed and one shared expert
    # per token
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
    REAL: ("dense", "moe", "moe", "moe"),
    "qwen3_moe": ("moe",) * 4,
    "llama4": ("dense", "moe") * 3,
}


TOKENS = {"deepseek_v3": 1024, REAL: 1024, "qwen3_moe": 1536, "llama4": 384}
"""Tokens of each of two ranks in prefill and training, one sequence; more where a model computes little per byte sent.
Half as many for each of four ranks, which share the processor."""


@dataclass(frozen=True)
class Effort:
    """How large and how often."""

    layers: int
    """At most."""
    tokens: int | None
    """Per rank in prefill and training, one sequence; None: `TOKENS`."""
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
        "batch": effort.sequences if group.phase == DECODE else 1,
        "tokens": 1 if group.phase == DECODE else effort.tokens or TOKENS[group.model] * 2 // group.hosts,
        "cached": effort.cached if group.phase == DECODE else 0,
        **{name: getattr(effort, name) for name in ("repetitions", "seconds", "profiles", "calibration")},
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
    step = f"{settings['tokens']} tokens"
    if group.phase == DECODE:
        step = f"a new token for {settings['batch']} sequences of {settings['cached']}"
    return (
        f"{group.model} style, {len(overrides['layers'])} layers, width {overrides['hidden_size']}, {spread}{router}, "
        f"{step} on each, float32"
    )
