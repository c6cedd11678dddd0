# SPDX-License-Identifier: Apache-2.0
"""Models of transformers under Inductor on two ranks: results, and what runs while the routed experts communicate."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._inductor.utils import run_and_get_code

import farskip_compile
from tests.compare import relative_difference
from tests.distributed.late_collectives import late_collectives
from tests.distributed.ranks import run_ranks
from tests.economy import scalar_kernels

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from tests.distributed.hf_ranks import IDS, compiled, compiled_each, difference, load, oracle, run_with_gradients, save

ROUNDING = 1e-5
"""Norms and routers are float32."""


def in_flight_at_attention(code: str) -> list[list[str]]:
    """For each attention of a generated program, the collectives that are in flight while it runs."""
    flying: dict[str, str] = {}
    found: list[list[str]] = []
    body = code[code.index("def call(") :]
    for line in body[: body.index("return (")].splitlines():
        launch = re.search(r"(?:(\w+) = )?torch\.ops\._c10d_functional\.(\w+)\.default\((\w+)", line)
        if launch is not None:
            result, name, argument = launch.groups()
            if name == "wait_tensor":
                flying.pop(argument, None)
            else:
                flying[argument if name.endswith("_") else result] = name
        elif re.search(r"aten\._scaled_dot\w+\.default\(", line):
            found.append(list(flying.values()))
    return found


def infer_on_rank(rank: int, world_size: int, path: str) -> dict[str, Any]:
    """With an all-reduce."""
    whole = load(path, rank, world_size).train()
    results: dict[str, Any] = {}
    model = load(path, rank, world_size, "all_reduce").eval()
    wishes = ("full", "none")
    runs = compiled_each(model, *({"inner": "inductor", "connectivity": connectivity} for connectivity in wishes))
    codes: list[str] = []
    for connectivity, run in zip(wishes, runs, strict=True):
        farskip_compile.reports().clear()
        with torch.no_grad(), scalar_kernels(), torch._inductor.config.patch(fx_graph_cache=False):
            if codes:
                logits = run(IDS)
            else:  # both are compiled by the first call
                logits, codes = run_and_get_code(run, IDS)
        (schedule,) = farskip_compile.reports().schedules
        results[connectivity] = {
            "standard or full": [relative_difference(logits, oracle(whole, c)(IDS)) for c in ("none", "full")],
            "profile": schedule.profile,
        }
    for connectivity, code in zip(wishes, codes, strict=True):
        results[connectivity]["in flight"] = in_flight_at_attention(code)
    return results


def train_on_rank(rank: int, world_size: int, path: str) -> dict[str, Any]:
    """With all-to-alls."""
    whole = load(path, rank, world_size).train()
    expected = run_with_gradients(oracle(whole), whole, IDS)
    model = load(path, rank, world_size, "farskip_all_to_all").train()
    farskip_compile.reports().clear()
    with late_collectives() as launched, scalar_kernels():
        trained = run_with_gradients(compiled(model, inner="inductor"), model, IDS)
    return {
        "difference": difference(trained, expected),
        "launched": launched.count("all_to_all_single"),
        "phases": [schedule.phase for schedule in farskip_compile.reports().schedules],
    }


def test_the_next_attention_runs_while_the_routed_experts_are_reduced(tmp_path: Path) -> None:
    """It needs every other collective that was launched before it, so what is in flight is the routed reduction."""
    for results in run_ranks(infer_on_rank, 2, save("qwen2_moe", 2, tmp_path), timeout=500, fresh=True):
        full, none = results["full"], results["none"]
        assert full["in flight"] == [[], ["all_reduce_"]], results
        assert none["in flight"] == [[], []], results
        assert full["standard or full"][1] < ROUNDING < full["standard or full"][0]
        assert none["standard or full"][0] < ROUNDING < none["standard or full"][1]
        assert "gloo" in full["profile"]


def test_a_step_of_training(tmp_path: Path) -> None:
    for training in run_ranks(train_on_rank, 2, save("qwen2_moe", 2, tmp_path), timeout=500):
        assert max(training["difference"]) < ROUNDING, training
        assert training["launched"] == 2 * (3 + 2), "counts are not differentiated"
        assert training["phases"] == ["forward", "backward"]
