# SPDX-License-Identifier: Apache-2.0
"""Layers of transformers compiled one by one under transformers' own parallelism, against the whole model without any.

DTensor reduces by itself: its collectives are seen after differentiation alone, and cross to the next layer even so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import farskip_compile
from tests.distributed.ranks import run_ranks

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("transformers.distributed.expert_parallel")  # since 5.22

from tests.distributed.hf_ranks import IDS, difference, load, oracle, run_with_gradients, save
from tests.distributed.test_regional_ranks import nothing_is_left_in_flight


def compare_on_rank(rank: int, world_size: int, path: str, mode: str, inner: str) -> dict[str, Any]:
    dtype = torch.float32 if inner == "inductor" else torch.float64
    whole = load(path, rank, world_size, dtype=dtype).train()
    expected = run_with_gradients(oracle(whole), whole, IDS)
    torch.compiler.reset()
    farskip_compile.reports().clear()
    model = load(path, rank, world_size, mode, dtype).train()
    farskip_compile.regional(model, "full", inner=inner)
    found = run_with_gradients(lambda ids: model(ids).logits, model, IDS)
    reports = [one.departure for one in farskip_compile.reports().compiles if one.departure is not None]
    schedules = [one for one in farskip_compile.reports().schedules if one.phase == "forward"]
    return {
        "difference": max(difference(found, expected)),
        "stays": [dict(one.stays) for one in reports if one.tail],
        "left": sorted(one.left_in_flight for one in schedules),
        "landed": [one.landed for one in schedules if one.landed],
        "nothing is left": nothing_is_left_in_flight(),
    }


@pytest.mark.parametrize(
    ("mode", "inner", "left"),
    [("tp", "aot_eager", []), ("tp", "inductor", [0, 1]), ("all_reduce", "aot_eager", [])],
)
def test_equal_to_the_whole_model(mode: str, inner: str, left: list[int], tmp_path: Path) -> None:
    path = save("qwen2_moe", 2, tmp_path)
    for found in run_ranks(compare_on_rank, 2, path, mode, inner, timeout=500):
        assert found["difference"] < (1e-4 if inner == "inductor" else 1e-6)
        assert not any(found["stays"])
        assert found["left"] == left
        assert not found["landed"]
        assert found["nothing is left"]
