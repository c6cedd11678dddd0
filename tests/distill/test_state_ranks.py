# SPDX-License-Identifier: Apache-2.0
"""States of two ranks: one is whole if it is whole on both, and both go on from the same one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from farskip_compile import ConfigError, FarSkipWarning
from farskip_compile.errors import DistillationError
from farskip_compile.healing.causal.ranks import TrainingRanks
from farskip_compile.healing.distill.states import Progress, read_newest, write_state
from tests.distributed.ranks import run_ranks

ABOUT = {"configuration": "c", "number of ranks": 2}


def damaged_on_one(rank: int, world_size: int, folder: str):
    root, ranks = Path(folder), TrainingRanks(nn.Linear(2, 2), lambda *_: False)
    about = {**ABOUT, "model": f"of rank {rank}"}  # parts of one model
    before = None
    for step in (1, 2):
        tensors = {
            "own/generator": torch.full((1,), rank, dtype=torch.uint8),
            "value/part": torch.full((2,), step + rank),
        }
        if rank == 0:
            tensors |= {"value/shared": torch.full((1,), step), "own/cuda.0": torch.zeros(1)}
        before = write_state(root, (about, Progress(step, 0, 0, 0, 0, 0, 1.0)), tensors, ranks, before)

    def numbers():
        path, state = read_newest(root, ranks, about, lambda state: state)
        return path.name, {name: value.tolist() for name, value in state.tensors.items()}

    whole = numbers()
    dist.barrier()  # the other rank's numbers are read from the file when they are used
    if rank == 0:
        os.truncate(root / "state-00000002" / "rank-1.safetensors", 10)
    dist.barrier()
    with pytest.warns(
        FarSkipWarning, match="state-00000002: " + ("damaged for another rank" if rank == 0 else ".* has 10 bytes")
    ):
        older = numbers()
    with pytest.raises(ConfigError, match="another model" if rank == 1 else "another run, on other ranks"):
        read_newest(root, ranks, {**about, "model": "of rank 0"}, lambda state: state)
    dist.barrier()
    if rank == 0:
        (root / "state-00000001" / "rank-0.json").unlink()
    dist.barrier()
    with pytest.warns(FarSkipWarning), pytest.raises(DistillationError, match=r"all states in .* are damaged"):
        numbers()
    with pytest.raises(ConfigError, match="can't read the folder"):
        read_newest(root / "state-00000001" / "rank-1.json", ranks, about, lambda state: state)
    return whole, older


def test_a_file_that_one_rank_needs_alone(tmp_path: Path) -> None:
    for rank, (whole, older) in enumerate(run_ranks(damaged_on_one, 2, str(tmp_path))):
        for step, found in ((2, whole), (1, older)):
            expected = {"own/generator": [rank], "value/part": [step + rank] * 2, "value/shared": [step]}
            if rank == 0:
                expected["own/cuda.0"] = [0.0]  # the other one has none
            assert found == (f"state-0000000{step}", expected)
