# SPDX-License-Identifier: Apache-2.0
"""Scheduled models on real gloo ranks: results, gradients, and memory of collectives in flight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import nn

import farskip_compile
from farskip_compile.models import FarSkipForm, build
from tests.compare import relative_difference, run_with_gradients
from tests.distributed.late_collectives import late_collectives
from tests.distributed.ranks import run_ranks
from tests.distributed.test_rewire_ranks import parallel_config, tokens_of
from tests.economy import scalar_kernels

SMALL: dict[str, Any] = {"vocab_size": 32, "layers": ("moe", "moe"), "hidden_size": 32}
ROUNDING = 1e-11
"""Inductor's kernels in float64 against eager ones, relative to the largest entry."""


def compare_on_rank(
    rank: int, world_size: int, layout: str, names: tuple[str, ...], connectivity: str
) -> dict[str, Any]:
    """Per model: differences from the oracle, with collectives that read late, and what was scheduled."""
    parallel = parallel_config(layout, world_size)
    found: dict[str, Any] = {}
    for name in names:
        torch.compiler.reset()
        farskip_compile.reports().clear()
        model = build(name, dtype=torch.float64, parallel=parallel, **SMALL)
        ids = torch.randint(0, 32, (2, 6), generator=torch.Generator().manual_seed(tokens_of(parallel)))
        expected, expected_gradients = run_with_gradients(FarSkipForm(model, connectivity=connectivity), model, ids)
        compiled = torch.compile(model, backend="farskip", fullgraph=True, options={"connectivity": connectivity})
        with late_collectives() as launched, scalar_kernels():
            output, gradients = run_with_gradients(compiled, model, ids)
        with scalar_kernels():
            again, _ = run_with_gradients(compiled, model, ids)  # with the real collectives
        reports = farskip_compile.reports().schedules
        found[name] = {
            "output": relative_difference(output, expected),
            "gradients": max(relative_difference(gradients[key], expected_gradients[key]) for key in gradients),
            "again": relative_difference(again, expected),
            "launched": len(launched),
            "moved": [r.unscheduled.exposed_seconds > r.after.exposed_seconds for r in reports],
            "phases": [r.phase for r in reports],
        }
    return found


@pytest.mark.parametrize(
    ("layout", "name", "connectivity"),
    [("padded", "llama4", "full")],  # other layouts run under Inductor in test_rewire_ranks
)
def test_results_and_gradients(layout: str, name: str, connectivity: str) -> None:
    for results in run_ranks(compare_on_rank, 2, layout, (name,), connectivity, timeout=400, fresh=True):
        for found in results.values():
            assert found["output"] < ROUNDING, results
            assert found["gradients"] < ROUNDING, results
            assert found["again"] < ROUNDING, results
            assert found["launched"] > 0
            assert found["phases"] == ["forward", "backward"]
            assert any(found["moved"]), results


class Branches(nn.Module):
    """Two exchanges, each with a branch beside it that could hide it."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weights = nn.ParameterList(torch.randn(4, 16, 16, generator=generator).unbind())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, beside, second, last = self.weights
        for weight in (first, second):
            exchanged = funcol.all_to_all_single(torch.tanh(x @ weight), None, None, dist.group.WORLD)
            x = exchanged @ last + torch.relu(x @ beside) @ beside
        return x


def scheduled_and_not(rank: int, world_size: int) -> tuple[list[bool], bool]:
    """Whether results and gradients are equal bit for bit, and whether scheduling changed anything."""
    model, x = Branches(), torch.randn(8, 16, generator=torch.Generator().manual_seed(rank))
    results = []
    for schedule in (False, True):
        torch.compiler.reset()
        farskip_compile.reports().clear()
        options: dict[str, Any] = {"connectivity": "none", "schedule": schedule, "memory_increase": 4.0}
        compiled = torch.compile(model, backend="farskip", fullgraph=True, options=options)
        output, gradients = run_with_gradients(compiled, model, x)
        results.append([output, *gradients.values()])
    moved = [
        report.unscheduled.exposed_seconds > report.after.exposed_seconds
        for report in farskip_compile.reports().schedules
    ]
    return [torch.equal(one, other) for one, other in zip(*results, strict=True)], any(moved) and len(moved) == 2


def test_scheduling_alone_changes_no_bit() -> None:
    for equal, moved in run_ranks(scheduled_and_not, 2):
        assert len(equal) == 5
        assert all(equal)
        assert moved
