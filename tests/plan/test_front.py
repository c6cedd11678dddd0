# SPDX-License-Identifier: Apache-2.0
"""Exposure by the cost model, and the front of a model on ranks that send nothing."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from farskip_compile import ConfigError, FarSkipConfig, describe
from farskip_compile.compiler.ranks.fake import fake_ranks
from farskip_compile.costs import load_profile
from farskip_compile.errors import ConnectivityError
from farskip_compile.healing.plan import connectivity_of, find_front, measure_damage, with_estimates
from farskip_compile.models import ParallelConfig
from tests.distill.common import batches, small

SIZES = {"layers": ("moe", "moe"), "hidden_size": 64, "moe_intermediate_size": 64}
IDS = batches(1, size=4, length=64)[0]
pytestmark = pytest.mark.xdist_group("front")  # one worker, so that the damage is measured once
CONFIG = FarSkipConfig(profile="h100", memory_increase=1.0)  # of so small a model, 5 % is less than a buffer


def parallel(**more):
    return small(parallel=ParallelConfig(ep_group=dist.group.WORLD), **{**SIZES, **more})


def test_rewired_rows_hide_communication():
    """Rewired rows hide communication, which itself does not change."""
    wishes = {"none": "none", "one": {"moe.1": ["a1"]}, "mlp": "mlp", "full": "full"}
    with fake_ranks(8):
        for backward in (False, True):
            found = with_estimates(
                parallel(),
                (IDS,),
                lambda estimate: {name: estimate(wish) for name, wish in wishes.items()},
                config=CONFIG,
                backward=backward,
            )
            times = {round(one.communication, 12) for one in found.values()}
            assert len(times) == 1
            assert found["full"].exposed <= found["mlp"].exposed <= found["one"].exposed < found["none"].exposed
            assert 0.0 <= found["none"].hidden < found["full"].hidden <= 1.0


def test_exchanges_in_pieces_hide_communication_of_the_model_as_it_is():
    slow = replace(load_profile("h100"), ranks_per_node=1)
    with fake_ranks(2):
        found = {
            pieces: with_estimates(
                parallel(experts=8),
                (IDS,),
                lambda estimate: estimate("none"),
                config=replace(CONFIG, pieces=pieces, profile=slow),
            )
            for pieces in (1, 2)
        }
    assert found[2].hidden > found[1].hidden


@pytest.mark.parametrize("cut", [{"pieces": 2}, {"pieces": 2, "pieces_along": "tokens"}, {"micro_batches": 2}], ids=str)
def test_what_is_cut_before_differentiation_is_known(cut):
    """Of exchanges without drops, cut by experts, by tokens, and with the batch."""
    slow = replace(load_profile("h100"), ranks_per_node=1)
    with fake_ranks(2):
        model = small(parallel=ParallelConfig(ep_group=dist.group.WORLD, ep_mode="dropless"), **SIZES, experts=8)
        found = [
            with_estimates(
                model,
                (IDS,),
                lambda estimate: estimate("none"),
                config=replace(CONFIG, profile=slow, **wish),
            )
            for wish in ({}, cut)
        ]
    assert found[1].hidden > found[0].hidden


@functools.cache
def damage_of_each_row():
    return measure_damage(small(**SIZES), batches(1, seed=7))


def test_the_front_of_a_model():
    damage = damage_of_each_row()
    with fake_ranks(8):
        sets = []
        front = find_front(parallel(), (IDS,), damage, config=CONFIG, on_estimate=sets.append)
        assert len(sets) == len(set(sets))
        assert {(), tuple(row.row for row in damage.rows)} <= set(sets)
        point = front.for_share(0.8)
        assert front.freed(point) >= 0.8
        assert point.damage <= front.whole.damage
        assert len(point.rows) < len(front.whole.rows)
        wish = connectivity_of(damage, point.rows)
        unscheduled = replace(CONFIG, inner="eager", schedule=False)  # estimates are of what scheduling would do
        again = with_estimates(parallel(), (IDS,), lambda estimate: estimate(wish), config=unscheduled)
        assert again == point.exposure
    assert describe(small(**SIZES), IDS, connectivity=wish).connectivity == wish


def test_what_can_not_be_estimated():
    damage = damage_of_each_row()
    with pytest.raises(ConfigError, match="not initialised"):
        find_front(small(**SIZES), (IDS,), damage)
    with fake_ranks(8):
        with pytest.raises(ConfigError, match="no collectives"):
            find_front(small(**SIZES), (IDS,), damage)
        with pytest.raises(ConnectivityError):
            find_front(parallel(layers=("moe",)), (IDS,), damage)
    assert torch.distributed.is_initialized() is False
