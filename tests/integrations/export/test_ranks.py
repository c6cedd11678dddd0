# SPDX-License-Identifier: Apache-2.0
"""Programs of models on two ranks: each rank exports its own, whose collectives are those of the rewired model."""

from __future__ import annotations

import io
from typing import Any

import torch
import torch.distributed as dist

import farskip_compile
from farskip_compile.models import FarSkipForm, ParallelConfig, build
from farskip_compile.tools.export import manifest_of
from tests.distributed.ranks import run_ranks

LAYOUTS = ("padded", "dropless", "tp")


def exported_on_rank(rank: int, world_size: int) -> dict[str, tuple[bool, bool, set[str]]]:
    """For each layout: whether a program that was saved and loaded equals the form by hand, for the tokens of the
    example and for others, and what collectives it has."""
    found = {}
    for layout in LAYOUTS:
        ways: dict[str, Any] = {"tp_group": dist.group.WORLD}
        if layout != "tp":
            ways = {"ep_group": dist.group.WORLD, "ep_mode": layout}
        parallel = ParallelConfig(**ways)
        model = build("mixtral", layers=("moe", "moe"), vocab_size=32, hidden_size=32, parallel=parallel).eval()
        equal = []
        with torch.no_grad():
            for seed in range(2):
                generator = torch.Generator().manual_seed(10 * seed + (rank if layout != "tp" else 0))
                ids = torch.randint(0, 32, (2, 6), generator=generator)
                if seed == 0:
                    program = farskip_compile.export(model, ids)
                    file = io.BytesIO()
                    torch.export.save(program, file)
                    file.seek(0)
                    loaded = torch.export.load(file)
                    assert manifest_of(loaded).connectivity == "full"
                equal.append(torch.equal(loaded.module()(ids), FarSkipForm(model)(ids)))
        names = {str(node.target) for node in loaded.graph.nodes if "c10d" in str(node.target)}
        found[layout] = (*equal, {name.split(".")[1] for name in names} - {"wait_tensor"})
    return found


def test_two_ranks() -> None:
    for found in run_ranks(exported_on_rank, 2):
        assert found == {
            "padded": (True, True, {"all_to_all_single"}),
            "dropless": (True, True, {"all_to_all_single"}),
            "tp": (True, True, {"all_reduce"}),
        }
