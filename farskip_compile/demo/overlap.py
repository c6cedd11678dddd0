"""What each rank of the demo's overlap part runs: one model, compiled in three ways, and the traces of a prefill.

Contract: `run_overlap` is called on every rank of a group with the same case. It compiles one model by plain Inductor
and twice by the farskip backend, compares each with the same wiring run eagerly, and leaves Chrome traces of this rank
in a folder. It says what it saw; what the traces mean is found out by `demo_compared.py`, for all ranks together.

The variants take turns under the profiler, so that a slow moment of the machine does not fall on one of them alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from farskip_compile.models import FarSkipForm, ParallelConfig, build
from farskip_compile.models.config import LayerKind
from farskip_compile.profiling import kernels_visible, record
from farskip_compile.report.schedule import ScheduleReport, clear_schedules, last_schedules

PLAIN, NONE, FULL = "plain Inductor", "ours, none", "ours, full"
"""torch.compile as everybody uses it; scheduled by the backend, the function as it is; rewired and scheduled."""
CONNECTIVITY = {NONE: "none", FULL: "full"}
VARIANTS = (PLAIN, NONE, FULL)
REPETITIONS = 3


@dataclass(frozen=True)
class OverlapCase:
    """The overlap part: a model, and how many tokens each rank has."""

    title: str
    about: str
    layers: tuple[LayerKind, ...]
    tokens: int
    memory_increase: float = 0.05
    """Option of the backend: by how much its schedule may raise the estimated peak memory."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Fields of `ModelConfig`."""


OVERLAP = OverlapCase(
    "Overlap of communication and compute",
    "A DeepSeek-V3 style prefill in float32, its experts spread over the ranks by a padded exchange, compiled in three "
    "ways; exposed is communication during which a rank computes nothing",
    ("moe", "moe"),
    512,
    memory_increase=1.0,  # in a model this small the exchanged tokens are as large as everything else together
    overrides={"hidden_size": 256, "moe_intermediate_size": 64, "query_rank": 64, "kv_rank": 64},
)


@dataclass(frozen=True)
class RankVariant:
    """One variant as one rank saw it."""

    name: str
    difference: float
    """Of the logits to the same wiring run eagerly, relative to their Euclidean norm."""
    traces: tuple[str, ...]
    """Files of this rank, one for each repetition."""
    predicted: ScheduleReport | None
    """What the scheduler expects; None if it was not asked."""


@dataclass(frozen=True)
class RankOverlap:
    """All variants as one rank saw them."""

    case: OverlapCase
    variants: tuple[RankVariant, ...]


def run_overlap(
    case: OverlapCase, group: dist.ProcessGroup, folder: str | Path, tell: Callable[[str], None] = lambda _: None
) -> RankOverlap:
    """Compile and record all variants on this rank of `group`; every rank of it must call.

    Args:
        case: what to run.
        group: the ranks that share the experts.
        folder: where this rank leaves its traces.
        tell: called with each step before it begins.
    """
    torch.compiler.reset()
    parallel = ParallelConfig(ep_group=group, ep_mode="padded")
    model = build("deepseek_v3", dtype=torch.float32, parallel=parallel, layers=case.layers, **case.overrides)
    generator = torch.Generator().manual_seed(group.rank())  # each rank has tokens of its own
    ids = torch.randint(0, model.config.vocab_size, (1, case.tokens), generator=generator)
    steps: dict[str, Callable[[], torch.Tensor]] = {}
    differences: dict[str, float] = {}
    predicted: dict[str, ScheduleReport | None] = {}
    with torch.no_grad(), kernels_visible():
        for name in VARIANTS:
            tell(f"compiling {name}")
            clear_schedules()
            steps[name] = _step(_compiled(case, model, name), ids)
            oracle = FarSkipForm(model) if name == FULL else model
            differences[name] = _difference(steps[name](), oracle(ids))
            predicted[name] = next(iter(last_schedules()), None)
        tell("recording traces")
        traces = {
            name: [str(Path(folder) / f"{_slug(name)}.{n}.rank{{rank}}.json") for n in range(REPETITIONS)]
            for name in VARIANTS
        }
        for n in range(REPETITIONS):
            for name in VARIANTS:
                record(steps[name], path=traces[name][n], warmup=1)
    torch.compiler.reset()
    rank = str(dist.get_rank())
    return RankOverlap(
        case,
        tuple(
            RankVariant(
                name, differences[name], tuple(path.replace("{rank}", rank) for path in traces[name]), predicted[name]
            )
            for name in VARIANTS
        ),
    )


def trace_name(variant: str) -> str:
    """File name of the merged trace of a variant."""
    return f"farskip_demo_{_slug(variant)}.trace.json"


def _compiled(case: OverlapCase, model: torch.nn.Module, name: str) -> Callable[..., Any]:
    if name == PLAIN:
        compiled: Callable[..., Any] = torch.compile(model, fullgraph=True)
        return compiled
    options: dict[str, Any] = {"connectivity": CONNECTIVITY[name], "memory_increase": case.memory_increase}
    compiled = torch.compile(model, backend="farskip", fullgraph=True, options=options)
    return compiled


def _step(compiled: Callable[..., Any], ids: torch.Tensor) -> Callable[[], torch.Tensor]:
    def step() -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = compiled(ids)
            return logits

    return step


def _difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return (torch.linalg.vector_norm(actual - expected) / torch.linalg.vector_norm(expected)).item()


def _slug(variant: str) -> str:
    return variant.lower().replace(", ", "_").replace(" ", "_")
