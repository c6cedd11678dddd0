"""What each rank of the demo runs: MoE models with their experts spread over the ranks.

Contract: `rank_main` is started by torchrun's launcher on every rank; it joins a gloo group, runs the given cases,
and leaves each finished one in a folder, as this rank saw it. All ranks must be given the same cases. Rank 0
writes a line into the progress file before each step.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

from farskip_compile.demo.checks import PREFILL, TRAINING, check
from farskip_compile.demo.overlap import OverlapCase, RankOverlap, run_overlap
from farskip_compile.demo.results import Case
from farskip_compile.models import FarSkipForm, ParallelConfig, build
from farskip_compile.models.config import LayerKind
from farskip_compile.ranks.leave import leaving

TIMEOUT = timedelta(minutes=5)
PROGRESS = "progress"


@dataclass(frozen=True)
class RankCase:
    """One case for the ranks."""

    title: str
    about: str
    model: str
    ep_mode: Literal["padded", "dropless"]
    inner: str
    dtype: torch.dtype
    layers: tuple[LayerKind, ...]
    phases: tuple[str, ...] = (PREFILL, TRAINING)


PADDED = RankCase(
    "DeepSeek-V3 style, padded exchange",
    "Latent attention, one dense layer, then experts with one shared expert; experts spread over the ranks, an equal "
    "share of slots for each",
    "deepseek_v3",
    "padded",
    "eager",
    torch.float64,
    ("dense", "moe", "moe", "moe"),
)
DROPLESS = RankCase(
    "DeepSeek-V3 style, dropless exchange",
    "The same model; ranks first exchange how many tokens they send",
    "deepseek_v3",
    "dropless",
    "eager",
    torch.float64,
    ("dense", "moe", "moe", "moe"),
)
INDUCTOR = RankCase(
    "Llama-4 style, compiled by Inductor",
    "Two MoE layers in float32: forward and backward through Inductor's kernels (building them takes most of the time)",
    "llama4",
    "padded",
    "inductor",
    torch.float32,
    ("moe", "moe"),
    (TRAINING,),
)


def run_case(case: RankCase, group: dist.ProcessGroup, tell: Callable[[str], None] = lambda _: None) -> Case:
    """Check one case on this rank of `group`; every rank of it must call."""
    parallel = ParallelConfig(ep_group=group, ep_mode=case.ep_mode)
    model = build(case.model, dtype=case.dtype, parallel=parallel, layers=case.layers)
    generator = torch.Generator().manual_seed(group.rank())  # each rank has tokens of its own
    ids = torch.randint(0, model.config.vocab_size, (2, 8), generator=generator)
    report, checks = check(model, FarSkipForm(model), ids, case.inner, case.phases, tell)
    return Case(case.title, case.about, ranks=group.size(), report=report, checks=tuple(checks))


def rank_main(cases: Sequence[RankCase | OverlapCase], folder: str) -> None:
    """Entry point of a rank.

    Args:
        cases: what to run, in this order.
        folder: where results and progress are written to.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=TIMEOUT)
    world = dist.group.WORLD
    assert world is not None
    with leaving():
        for index, case in enumerate(cases):
            tell = _teller(case, Path(folder) / PROGRESS)
            if isinstance(case, OverlapCase):
                result: Case | RankOverlap = run_overlap(case, world, folder, tell)
            else:
                result = run_case(case, world, tell)
            target = result_file(folder, index, world.rank())
            part = target.with_name(f"{target.name}.part")
            part.write_bytes(pickle.dumps(result))
            os.replace(part, target)  # whoever sees the file sees all of it


def result_file(folder: str | Path, index: int, rank: int) -> Path:
    """Where `rank` leaves case number `index`."""
    return Path(folder) / f"case{index}.rank{rank}"


def _teller(case: RankCase | OverlapCase, progress: Path) -> Callable[[str], None]:
    def tell(phase: str) -> None:
        if dist.get_rank() == 0:
            with progress.open("a") as file:
                file.write(f"{case.title}: {phase}\n")

    return tell
