# SPDX-License-Identifier: Apache-2.0
"""What is swept, and the predictions: named lists of scenarios at full size, each predicted in its own process.

Contract: a sweep has one axis; each of its points is a scenario, or several kinds of hardware for one. Nothing is
measured but the time and memory that predicting takes.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from common import each_in_a_process

from farskip_compile.costs import HardwareProfile, load_profile

TOKENS = 4096
"""Of a rank's one sequence, in prefill by all-to-all."""


@dataclass(frozen=True)
class Point:
    """One prediction, or several from one capture."""

    label: str
    options: dict[str, Any]
    """Of a `Scenario`."""
    faster: tuple[float, ...] = ()
    """Bandwidths between nodes, relative to the profile's: one prediction each."""

    def profiles(self) -> list[HardwareProfile]:
        """The hardware of its predictions."""
        profile = load_profile(self.options["device"])
        return [with_bandwidth(profile, one) for one in self.faster] if self.faster else [profile]


@dataclass(frozen=True)
class Sweep:
    """Points along one axis."""

    name: str
    title: str
    axis: str
    points: Callable[[], list[Point]]


def with_bandwidth(profile: HardwareProfile, faster: float) -> HardwareProfile:
    """The same hardware with another network between its nodes."""
    link = replace(profile.inter_node, bandwidth=profile.inter_node.bandwidth * faster)
    return replace(profile, name=f"{profile.name}, network x {faster:g}", inter_node=link)


def _ranks(model: str, device: str, most: int) -> list[Point]:
    return [
        Point(str(ep), {"model": model, "device": device, "ep": ep, "prompt": TOKENS, "batch": ep})
        for ep in (8, 16, 32, 64, 128, 256)
        if ep <= most
    ]


def _in_parts(model: str, ep: int) -> Point:
    """As many tokens on a rank as in the other sweeps, of two sequences: a micro-batch has one."""
    options = {"model": model, "device": "h100", "ep": ep, "prompt": TOKENS // 2, "batch": 2 * ep}
    return Point(f"{model}, {ep}", {**options, "pieces": 2, "micro_batches": 2, "also": ("lag2",)})


V3 = {"model": "deepseek-v3", "device": "h100"}
EP64 = {**V3, "ep": 64, "prompt": TOKENS, "batch": 64}
ONE_NODE = {"model": "deepseek-v3", "device": "mi300x", "ep": 8, "tp": 8}
PREFILL, DECODE = {"prompt": 2048, "batch": 16}, {"prompt": 2048, "phase": "decode"}
MODELS = (
    "deepseek-v3", "deepseek-v2", "deepseek-v2-lite", "llama4-scout", "qwen3-30b-a3b", "qwen3-235b-a22b",
    "mixtral-8x22b", "gpt-oss-120b", "kimi-k2", "instella-moe-16b",
)  # fmt: skip

_ALL = (
    Sweep(
        "ranks-v3",
        "DeepSeek-V3, H100, expert parallelism over more and more ranks (8 per node)",
        "ranks",
        lambda: _ranks("deepseek-v3", "h100", 256),
    ),
    Sweep("ranks-qwen3", "Qwen3-235B-A22B, H100, the same", "ranks", lambda: _ranks("qwen3-235b-a22b", "h100", 128)),
    Sweep(
        "bandwidth",
        "DeepSeek-V3, 64 x H100, other networks between the nodes (1: 400 Gb/s per GPU)",
        "bandwidth",
        lambda: [Point("", EP64, faster=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0))],
    ),
    Sweep(
        "skew",
        "DeepSeek-V3, 64 x H100, experts chosen by Zipf's law (0: equally often)",
        "exponent",
        lambda: [Point(f"{skew:g}", {**EP64, "skew": skew}) for skew in (0.0, 0.3, 0.6, 0.9, 1.2)],
    ),
    Sweep(
        "pieces",
        "In two pieces, in two micro-batches, and under lag2: H100, expert parallelism (8 per node), prefill of two "
        "sequences of 2048 tokens on each rank",
        "model and ranks",
        lambda: [_in_parts(model, ep) for model in ("deepseek-v3", "qwen3-235b-a22b") for ep in (16, 32)],
    ),
    Sweep(
        "decode",
        "DeepSeek-V3, 8 x MI300X by all-reduce, decode after 2048 tokens",
        "sequences",
        lambda: [Point(str(batch), {**ONE_NODE, **DECODE, "batch": batch}) for batch in (8, 64, 256, 1024)],
    ),
    Sweep(
        "models",
        "Ten models, 8 x MI300X by all-reduce, prefill of 16 sequences of 2048 tokens",
        "model",
        lambda: [Point(name, {**ONE_NODE, **PREFILL, "model": name}) for name in MODELS],
    ),
    Sweep(
        "depth",
        "How predicting grows with depth: DeepSeek-V3 as among the ten models",
        "layers",
        lambda: [Point(str(layers), {**ONE_NODE, **PREFILL, "layers": layers}) for layers in (8, 16, 31, 61)],
    ),
)
SWEEPS = {sweep.name: sweep for sweep in _ALL}
"""By name."""


@dataclass(frozen=True)
class Found:
    """One prediction."""

    sweep: str
    label: str
    written: float
    """Seconds of the step as written."""
    communication: float
    exposed: float
    """Seconds under FarSkip in our order."""
    scheduled: float
    """Speed-ups over the step as written."""
    published: float
    farskip: float
    imbalance: float
    parameters: int
    nodes: int
    took: dict[str, float]
    peak_gib: float
    """Of the process that predicted."""
    also: dict[str, float] = field(default_factory=dict)
    """Speed-ups of what else was asked for: in pieces, in two micro-batches, and under other connectivities."""

    @property
    def seconds(self) -> float:
        """What predicting took."""
        return self.took["model"] + self.took["graphs"] + self.took["orders"]


def run_sweeps(names: list[str], workers: int) -> list[Found]:
    tasks = [(name, place) for name in SWEEPS if name in names for place in range(len(SWEEPS[name].points()))]
    return [one for found in each_in_a_process(_run, tasks, workers) for one in found]


def _run(task: tuple[str, int]) -> list[Found]:
    from farskip_compile.measure.simulate import Scenario, predict_each

    name, place = task
    point = SWEEPS[name].points()[place]
    scenario = Scenario(**point.options)
    predictions = predict_each([replace(scenario, device=profile) for profile in point.profiles()])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    labels = [f"{one:g}" for one in point.faster] or [point.label]
    return [
        Found(
            sweep=name,
            label=label,
            written=one.written.seconds,
            communication=one.written.communication,
            exposed=one.farskip.exposed,
            scheduled=one.scheduled_speedup,
            published=one.published_speedup,
            farskip=one.speedup,
            imbalance=one.imbalance,
            parameters=one.parameters,
            nodes=one.nodes,
            took=dict(one.took),
            peak_gib=peak,
            also={name: one.written.seconds / step.seconds for name, step in one.also.items()},
        )
        for label, one in zip(labels, predictions, strict=True)
    ]
