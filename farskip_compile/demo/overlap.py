# SPDX-License-Identifier: Apache-2.0
"""The demo's overlap part: one model, compiled in three ways, recorded on every rank and compared.

Contract: `run_overlap` is called on every rank of a group with the same case. It compiles one model by plain Inductor
and twice by the farskip backend, compares each with the same wiring run eagerly, and leaves Chrome traces of this rank
in a folder. The variants alternate under the profiler, so that a slow moment of the machine does not hit only one.
`compared` then reads the traces of all ranks, and keeps of each variant the repetition with the median exposed time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from farskip_compile.demo.results import DemoComparison, Variant, slug
from farskip_compile.errors import FarSkipError
from farskip_compile.measure.profiling import kernels_visible, merge_traces, overlap, read_trace, record
from farskip_compile.models import FarSkipForm, ParallelConfig, build
from farskip_compile.models.config import LayerKind
from farskip_compile.records.schedule import ScheduleReport, clear_schedules, last_schedules

PLAIN, NONE, FULL = "plain Inductor", "ours, none", "ours, full"
"""plain torch.compile; scheduled by the backend, the function as it is; rewired and scheduled."""
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
    """Difference of the logits from the same wiring run eagerly, relative to their Euclidean norm."""
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
    """Compile and record all variants on this rank of `group`, which shares the experts; every rank of it must call."""
    torch.compiler.reset()
    parallel = ParallelConfig(ep_group=group, ep_mode="padded")
    model = build("deepseek_v3", dtype=torch.float32, parallel=parallel, layers=case.layers, **case.overrides)
    generator = torch.Generator().manual_seed(group.rank())  # each rank has tokens of its own
    ids = torch.randint(0, model.config.vocab_size, (1, case.tokens), generator=generator)
    steps: dict[str, Callable[[], torch.Tensor]] = {}
    variants: list[RankVariant] = []
    with torch.no_grad(), kernels_visible():
        for name in VARIANTS:
            tell(f"compiling {name}")
            clear_schedules()
            ours = {"connectivity": CONNECTIVITY.get(name), "memory_increase": case.memory_increase}
            how: dict[str, Any] = {} if name == PLAIN else {"backend": "farskip", "options": ours}
            steps[name] = partial(torch.compile(model, fullgraph=True, **how), ids)
            oracle = FarSkipForm(model) if name == FULL else model
            actual, expected = steps[name](), oracle(ids)
            difference = ((actual - expected).norm() / expected.norm()).item()
            files = (f"{slug(name)}.{n}.rank{dist.get_rank()}.json" for n in range(REPETITIONS))
            traces = tuple(str(Path(folder) / file) for file in files)
            variants.append(RankVariant(name, difference, traces, next(iter(last_schedules()), None)))
        tell("recording traces")
        for n in range(REPETITIONS):
            for variant in variants:
                record(steps[variant.name], path=variant.traces[n], warmup=1)
    torch.compiler.reset()
    return RankOverlap(case, tuple(variants))


def compared(per_rank: Sequence[RankOverlap]) -> DemoComparison:
    """All ranks together. A trace that can't be used becomes the problem of the comparison."""
    case = per_rank[0].case
    try:
        together = zip(*(seen.variants for seen in per_rank), strict=True)
        variants = tuple(_variant(ranks) for ranks in together)
    except FarSkipError as error:
        return DemoComparison(case.title, case.about, len(per_rank), problem=f"{type(error).__name__}: {error}")
    setting = f"CPU, {len(per_rank)} ranks, prefill of {case.tokens} tokens on each, float32"
    return DemoComparison(case.title, case.about, len(per_rank), variants=variants, setting=setting)


def _variant(ranks: Sequence[RankVariant]) -> Variant:
    repetitions = list(zip(*(seen.traces for seen in ranks), strict=True))
    reports = [overlap([read_trace(path) for path in paths]) for paths in repetitions]
    order = sorted(range(len(reports)), key=lambda index: (reports[index].total.exposed_ns, index))
    middle = order[len(order) // 2]
    with tempfile.TemporaryDirectory(prefix="farskip-demo-") as folder:
        merged = merge_traces(repetitions[middle], Path(folder) / "merged.json").read_bytes()
    difference = max(seen.difference for seen in ranks)
    return Variant(ranks[0].name, reports[middle], difference, ranks[0].predicted, merged)
