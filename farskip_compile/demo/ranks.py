# SPDX-License-Identifier: Apache-2.0
"""What each rank of the demo runs: MoE models with their experts spread over the ranks, compiled and compared with
their hand-written FarSkip forms: the same weights, the same tokens.

Contract: `rank_main` is started by torchrun's launcher on every rank; it joins a gloo group, runs the given cases, and
sends each finished one, as this rank saw it, into its pipe to the process that started it. All ranks must be given the
same cases. Rank 0 sends a line of text before each step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from farskip_compile.compiler.backend import backend
from farskip_compile.compiler.ranks.process_group import leaving_process_group
from farskip_compile.demo.overlap import OverlapCase, run_overlap
from farskip_compile.demo.results import Check, DemoCase
from farskip_compile.models import FarSkipForm, ParallelConfig, build
from farskip_compile.models.config import LayerKind
from farskip_compile.records.compile import CompileReport

TIMEOUT = timedelta(minutes=5)
Gradients = dict[str, torch.Tensor]
PREFILL, TRAINING = "prefill", "training step"

TOLERANCES = {"eager": (0.0, 1e-12), "inductor": (1e-4, 1e-4)}
"""Outputs and gradients. The eager inner backend runs the oracle's own operators in the oracle's own order, so its
outputs must be equal bit for bit; autograd may add up gradients in another order. Inductor fuses and reorders."""


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
DROPLESS = replace(
    PADDED,
    title="DeepSeek-V3 style, dropless exchange",
    about="The same model; ranks first exchange how many tokens they send",
    ep_mode="dropless",
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


def run_case(case: RankCase, group: dist.ProcessGroup, tell: Callable[[str], None] = lambda _: None) -> DemoCase:
    """Check one case on this rank of `group`; every rank of it must call."""
    parallel = ParallelConfig(ep_group=group, ep_mode=case.ep_mode)
    model = build(case.model, dtype=case.dtype, parallel=parallel, layers=case.layers)
    generator = torch.Generator().manual_seed(group.rank())  # each rank has tokens of its own
    ids = torch.randint(0, model.config.vocab_size, (2, 8), generator=generator)
    report, checks = check(model, FarSkipForm(model), ids, case.inner, case.phases, tell)
    return DemoCase(case.title, case.about, ranks=group.size(), report=report, checks=tuple(checks))


def rank_main(cases: Sequence[RankCase | OverlapCase], folder: str, pipes: Sequence[Connection]) -> None:
    """Entry point of a rank: runs `cases` in this order; sends text and results into its one of `pipes`.

    Args:
        cases: the same on all ranks.
        folder: for traces.
        pipes: one for each rank.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=TIMEOUT)
    world = dist.group.WORLD
    assert world is not None
    pipe = pipes[world.rank()]

    def tell(case: RankCase | OverlapCase, phase: str) -> None:
        if world.rank() == 0:
            pipe.send(f"{case.title}: {phase}")

    with leaving_process_group():
        for case in cases:
            if isinstance(case, OverlapCase):
                pipe.send(run_overlap(case, world, folder, partial(tell, case)))
            else:
                pipe.send(run_case(case, world, partial(tell, case)))


def check(
    model: nn.Module,
    oracle: nn.Module,
    ids: torch.Tensor,
    inner: str,
    phases: Sequence[str],
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[CompileReport, list[Check]]:
    """Compile `model` by the farskip backend; compare it, in each of `phases`, with `oracle`, which shares its weights,
    and with its own plain wiring. Gradients of the model are left at None.
    """
    reports: list[CompileReport] = []
    torch.compiler.reset()
    compiled = torch.compile(model, backend=backend(inner=inner, on_report=reports.append), fullgraph=True)
    checks = []
    for phase in phases:
        tell(phase)
        run = _training_step if phase == TRAINING else _prefill
        start = time.perf_counter()
        actual, gradients = run(compiled, model, ids)
        seconds = time.perf_counter() - start
        expected, expected_gradients = run(oracle, model, ids)
        plain, _ = _prefill(model, model, ids)
        same = gradients.keys() == expected_gradients.keys() and all(
            torch.equal(gradients[name], expected_gradients[name]) for name in gradients
        )
        differences = [_difference(gradients[name], expected_gradients[name]) for name in expected_gradients]
        output_tolerance, gradient_tolerance = TOLERANCES[inner]
        checks.append(
            Check(
                phase=phase,
                inner=inner,
                dtype=str(actual.dtype).removeprefix("torch."),
                output_difference=_difference(actual, expected),
                outputs_equal=torch.equal(actual, expected),
                gradient_difference=max(differences) if differences else None,
                gradients_equal=same if differences else None,
                plain_difference=_difference(actual, plain),
                output_tolerance=output_tolerance,
                gradient_tolerance=gradient_tolerance,
                seconds=seconds,
            )
        )
    torch.compiler.reset()
    return reports[0], checks


def _prefill(run: Callable[..., Any], model: nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, Gradients]:
    with torch.no_grad():
        return _logits(run(ids)), {}


def _training_step(run: Callable[..., Any], model: nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, Gradients]:
    """Outputs and gradients of a next-token loss."""
    model.zero_grad(set_to_none=True)
    logits = _logits(run(ids))
    nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return logits.detach(), gradients


def _logits(output: Any) -> torch.Tensor:
    """What a plain model returns; a field of what a `transformers` model returns."""
    logits: torch.Tensor = getattr(output, "logits", output)
    return logits


def _difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, relative to the largest expected magnitude; infinite if anything is not finite."""
    if not actual.isfinite().all():
        return float("inf")
    scale = expected.abs().max().item()
    return (actual - expected).abs().max().item() / (scale or 1.0)
