# SPDX-License-Identifier: Apache-2.0
"""torchtitan's trainer, as its command runs it, on two gloo ranks: FSDP2, expert parallelism, full checkpointing.

Each run is given the arguments of the command and a configuration of `tests/models/titan_wired.py`, and is compared in
every step, by loss and norm of the gradient: "none" with the plain trainer, bit for bit; "full" with FarSkip written
out block by block. There gradients are summed in another order, in float32 with experts in bfloat16: in twenty steps
losses differ by up to 2.2e-6, and from those of the model as written by 5.8e-3 and more (2.7e-4 in two steps).

All runs have `partial_dtensor`: see docs/torchtitan.md.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from tests.distributed.ranks import run_ranks

pytest.importorskip("torchtitan")
pytest.importorskip("torchdata")
pytest.importorskip("tensorboard")

from tests.models.titan_trainer import Step, losses, trainer_on_cpu

PAGE = (Path(__file__).parents[2] / "docs" / "torchtitan.md").read_text()
BLOCKS = dict(re.findall(r"^```\w+\n# (\S+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))

COMMON = ("--parallelism.expert_parallel_degree", "2", "--parallelism.spmd_backend", "partial_dtensor")
FLAGS = ("--compile.enable", "--compile.backend", "farskip", "--compile.components", "model")
CHECKPOINTS = "activation-checkpoint:full"
CLOSE = 1e-5


def train_on_rank(
    rank: int, world_size: int, folder: str, model: str, steps: int, wirings: list[str]
) -> list[list[Step]]:
    sys.path.insert(0, folder)
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(world_size))
    logging.disable(logging.WARNING)
    logged = []
    with trainer_on_cpu():
        from torchtitan.distributed import compile as blocks

        # compiles blocks with flex attention by two backends alone
        with patch.object(blocks, "_maybe_regional_inductor_backend", lambda _, backend: backend):
            for wiring in wirings:
                torch.compiler.reset()
                flags = () if wiring in ("plain", "byhand") else FLAGS
                length = ("--training.steps", str(steps))
                chosen = ("--module", "tests.models.titan_wired", "--config", f"{model}_{wiring}")
                logged.append(losses([*chosen, *COMMON, *length, *flags, CHECKPOINTS]))
    return logged


def train(folder: Path, model: str, steps: int, *wirings: str) -> list[list[Step]]:
    """What is logged on all ranks alike, for each of `wirings`."""
    for name, text in BLOCKS.items():
        (folder / name).write_text(text)
    first, second = run_ranks(train_on_rank, 2, str(folder), model, steps, list(wirings), timeout=900)
    assert first == second
    assert [len(run) for run in first] == [steps] * len(wirings)
    return first


def distances(one: list[Step], other: list[Step]) -> list[float]:
    """Between losses, relative, in each step."""
    return [abs(a - b) / b for (a, _), (b, _) in zip(one, other, strict=True)]


@pytest.mark.parametrize(("model", "steps"), [("qwen3", 2), ("qwen3", 20), ("deepseek_v3", 20)])
def test_losses_of_each_step(model: str, steps: int, tmp_path: Path) -> None:
    plain, none, by_hand, full = train(tmp_path, model, steps, "plain", "none", "byhand", "full")
    assert none == plain
    assert max(distances(full, by_hand)) < CLOSE
    assert max(distances(full, plain)) > 10 * CLOSE
    assert full[0] == by_hand[0]
    assert full[0] != plain[0]
    assert steps == 2 or full[-1][0] < 0.6 * full[0][0]


def test_blocks_that_the_trainer_compiles(tmp_path: Path) -> None:
    """Prepared before, and the flag does the rest."""
    ours, theirs = train(tmp_path, "qwen3", 2, "full", "prepared")
    assert ours == theirs
