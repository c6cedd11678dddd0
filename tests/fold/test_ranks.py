# SPDX-License-Identifier: Apache-2.0
"""A fold on two ranks is that of one process with all the data, however parameters are spread."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from farskip_compile import ConfigError
from farskip_compile.healing.fold import fold
from farskip_compile.models import ParallelConfig
from tests.compare import relative_difference
from tests.distill.common import batches, small, weights
from tests.distributed.ranks import run_ranks
from tests.fold import by_hand

SHAPE = {"size": 4, "length": 16}
DATA, HELD_OUT = batches(4, **SHAPE), batches(2, seed=7, **SHAPE)
TEXT = [ids % by_hand.VOCABULARY for ids in DATA]
JUDGED = [ids % by_hand.VOCABULARY for ids in HELD_OUT]


def experts(rank: int, size: int, parallel: str):
    group = ParallelConfig(ep_group=dist.group.WORLD, ep_mode="dropless") if parallel == "ep" else None
    model = small(layers=("moe", "moe"), parallel=group)
    done = fold(model, DATA[rank::size], held_out=HELD_OUT[rank::size])
    return weights(model), done


@pytest.mark.parametrize("parallel", ["copies", "ep"])
def test_two_ranks_are_one_process_with_all_data(parallel):
    results = run_ranks(experts, 2, parallel, timeout=240.0)
    whole = small(layers=("moe", "moe"))
    wanted = fold(whole, DATA, held_out=HELD_OUT)
    assert any(read.accepted for read in wanted.reads)
    for rank, (found, done) in enumerate(results):
        assert [(one.row, one.parameters, one.accepted, one.ridge) for one in done.reads] == [
            (one.row, one.parameters, one.accepted, one.ridge) for one in wanted.reads
        ]
        assert done.tokens == wanted.tokens
        assert done.kl_after == pytest.approx(wanted.kl_after, rel=1e-5)
        for name, value in weights(whole).items():
            part = value.chunk(2)[rank] if parallel == "ep" and ".experts." in name else value
            assert relative_difference(found[name], part) < 1e-8, name
    both = [found for found, _ in results]
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[0] if ".experts." not in name)


def fully_sharded(rank: int, size: int):
    from torch.distributed.fsdp import fully_shard

    model = by_hand.Model(8)
    fully_shard(model)
    done = fold(model, TEXT[rank::size], held_out=JUDGED[rank::size])
    placements = {name: str(value.placements) for name, value in model.named_parameters()}
    whole = {name: value.full_tensor().detach() for name, value in model.named_parameters()}
    with torch.no_grad():
        logits = model(JUDGED[0])  # it is still what FSDP2 has made of it
    return whole, done, placements, logits


def test_fully_sharded_data_parallel():
    results = run_ranks(fully_sharded, 2, timeout=240.0)
    whole = by_hand.Model(8)
    wanted = fold(whole, TEXT, held_out=JUDGED)
    assert any(read.accepted and not read.outputs for read in wanted.reads)
    for found, done, placements, logits in results:
        assert [(one.row, one.parameters, one.accepted) for one in done.reads] == [
            (one.row, one.parameters, one.accepted) for one in wanted.reads
        ]
        assert set(placements.values()) == {"(Shard(dim=0),)"}
        for name, value in whole.named_parameters():
            assert relative_difference(found[name], value.detach()) < 1e-8, name
        assert relative_difference(logits, whole(JUDGED[0]).detach()) < 1e-10


def uneven(rank: int, size: int) -> None:
    with pytest.raises(ConfigError, match="different numbers of batches"):
        fold(by_hand.Model(), TEXT[: 1 + rank], held_out=JUDGED)


def test_ranks_with_different_numbers_of_batches_do_not_hang():
    run_ranks(uneven, 2)
