# SPDX-License-Identifier: Apache-2.0
"""What changes in a run is put back as it was, for spread tensors on each rank its own part."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from farskip_compile.compiler.ranks.fake import fake_ranks
from farskip_compile.healing.causal.batches import Position
from farskip_compile.healing.causal.ranks import TrainingRanks
from farskip_compile.healing.causal.tensor_files import local
from farskip_compile.healing.distill.best import Best
from farskip_compile.healing.distill.snapshot import TrainingSnapshot
from farskip_compile.healing.distill.states import Progress, RestoredState

PROGRESS = Progress(taken=2, tokens=3, epoch=0, batches=1, best_score=0.5, best_step=1, waited=1)


def trained(model: nn.Module) -> TrainingSnapshot:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    best = Best(model, None, 0.0)
    best.record(1, 0.5)
    for value in model.parameters():
        value.grad = torch.ones_like(value)
    optimizer.step()
    return TrainingSnapshot(model, optimizer, best, TrainingRanks(model, lambda *_: False))


def numbers(snapshot: TrainingSnapshot) -> dict[str, list]:
    return {name: local(value).tolist() for name, value in snapshot.take(Position()).items()}


@pytest.mark.parametrize("rank", [0, 1])
def test_spread_tensors(rank: int) -> None:
    with fake_ranks(2):
        model = nn.Linear(2, 2, dtype=torch.float64)
        model.register_buffer("rotary", torch.randn(3, dtype=torch.complex128))
        mesh = init_device_mesh("cpu", (2,))
        model.weight = nn.Parameter(DTensor.from_local(torch.arange(4.0).view(2, 2), mesh, [Shard(0)]))
        snapshot = trained(model)
        snapshot.ranks.rank = rank
        kinds = {"value", "best", "optimizer.step", "optimizer.exp_avg", "optimizer.exp_avg_sq"}
        taken = {name: local(value).clone() for name, value in snapshot.take(Position()).items()}
        assert {name.partition("/")[0] for name in taken if name.endswith("/weight")} == kinds
        assert ("value/bias" in taken) == ("value/rotary" in taken) == (rank == 0)  # what all ranks have
        if rank == 1:
            return
        with torch.no_grad():
            for value in (*model.parameters(), model.rotary):
                local(value).zero_()
        snapshot.optimizer.state.clear()
        snapshot.best.weights.clear()
        snapshot.put_back(snapshot.check(RestoredState(PROGRESS, taken)))
        assert numbers(snapshot) == {name: value.tolist() for name, value in taken.items()}
        assert isinstance(snapshot.optimizer.state[model.weight]["exp_avg"], DTensor)
        assert (snapshot.best.score, snapshot.best.step, snapshot.best.waited) == (0.5, 1, 1)


def test_generators_go_on() -> None:
    with torch.random.fork_rng():
        snapshot = trained(nn.Linear(2, 2))
        taken = snapshot.take(Position(generator=torch.get_rng_state()))
        expected = torch.rand(3)
        snapshot.put_back_generators(snapshot.check(RestoredState(PROGRESS, taken)))
        assert torch.equal(torch.rand(3), expected)
