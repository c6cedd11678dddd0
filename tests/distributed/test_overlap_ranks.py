"""Scheduled models on real gloo ranks: results, gradients, and memory of collectives in flight."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import farskip_compile
from farskip_compile.models import FarSkipForm, build
from tests.compare import relative_difference, run_with_gradients
from tests.distributed.late_collectives import late_collectives
from tests.distributed.ranks import run_ranks
from tests.distributed.test_rewire_ranks import parallel_config, tokens_of

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
        farskip_compile.clear_schedules()
        model = build(name, dtype=torch.float64, parallel=parallel, **SMALL)
        ids = torch.randint(0, 32, (2, 6), generator=torch.Generator().manual_seed(tokens_of(parallel)))
        expected, expected_gradients = run_with_gradients(FarSkipForm(model, connectivity=connectivity), model, ids)
        compiled = torch.compile(model, backend="farskip", fullgraph=True, options={"connectivity": connectivity})
        with late_collectives() as launched:
            output, gradients = run_with_gradients(compiled, model, ids)
        again, _ = run_with_gradients(compiled, model, ids)  # with the real collectives
        found[name] = {
            "output": relative_difference(output, expected),
            "gradients": max(relative_difference(gradients[key], expected_gradients[key]) for key in gradients),
            "again": relative_difference(again, expected),
            "launched": len(launched),
            "moved": [r.before.exposed_seconds > r.after.exposed_seconds for r in farskip_compile.last_schedules()],
            "phases": [r.phase for r in farskip_compile.last_schedules()],
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
