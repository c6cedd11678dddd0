"""Compare a compiled model with its hand-written FarSkip form: the same weights, the same tokens.

Contract: `check` compiles `model` with the farskip backend and compares it with `oracle`, which shares its parameters,
and with its own plain wiring. Gradients of the model are left at None.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from farskip_compile.backend import backend
from farskip_compile.demo.results import Check
from farskip_compile.report.compile import CompileReport

PREFILL, TRAINING = "prefill", "training step"

TOLERANCES = {"eager": (0.0, 1e-12), "inductor": (1e-4, 1e-4)}
"""Outputs and gradients. The eager inner backend runs the oracle's own operators in the oracle's own order, so its
outputs must be equal bit for bit; autograd may add up gradients in another order. Inductor fuses and reorders."""


def check(
    model: nn.Module,
    oracle: nn.Module,
    ids: torch.Tensor,
    inner: str,
    phases: Sequence[str],
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[CompileReport, list[Check]]:
    """Compile `model` and compare it with `oracle` in each of `phases`.

    Args:
        model: the plain model.
        oracle: its FarSkip form, with the same parameters.
        ids: token ids [B, T].
        inner: as in `FarSkipConfig`.
        phases: some of `PREFILL` and `TRAINING`.
        tell: called with the name of each phase before it begins.
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
                gradients_equal=_all_equal(gradients, expected_gradients) if differences else None,
                plain_difference=_difference(actual, plain),
                output_tolerance=output_tolerance,
                gradient_tolerance=gradient_tolerance,
                seconds=seconds,
            )
        )
    torch.compiler.reset()
    return reports[0], checks


Gradients = dict[str, torch.Tensor]


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


def _all_equal(one: Gradients, other: Gradients) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in other)
