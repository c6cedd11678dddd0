# SPDX-License-Identifier: Apache-2.0
"""The damage of each row, against the hand-written FarSkip form."""

from __future__ import annotations

import pytest
import torch

from farskip_compile import ConfigError, describe
from farskip_compile.errors import ConnectivityError, LayerRangeError
from farskip_compile.healing.plan import connectivity_of, measure_damage, measure_together
from farskip_compile.models import FarSkipForm
from tests.distill.common import EAGER, batches, small, weights

pytestmark = pytest.mark.xdist_group("damage")  # one worker, so that it is measured once

HELD_OUT = batches(2, seed=7)


def kl(model, function) -> float:
    with torch.no_grad():
        ids = torch.cat(HELD_OUT)
        p, q = model(ids)[:, :-1].log_softmax(-1), function(ids)[:, :-1].log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1).mean().item()


@pytest.fixture(scope="module")
def measured():
    model = small(layers=("dense", "moe", "moe"), dropout=0.3).train()
    modes, before = [module.training for module in model.modules()], weights(model)
    seen = []
    damage = measure_damage(model, HELD_OUT, on_row=lambda done, total: seen.append((done, total)))
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    return model.eval(), damage


def test_each_row_alone(measured):
    model, damage = measured
    assert damage.original.kl == 0.0
    assert [(row.row, row.layer, row.left_out) for row in damage.rows] == [
        ("mlp.0", 0, ("a0",)),
        ("moe.1", 1, ("a1",)),
        ("attention.2", 2, ("r1",)),
        ("moe.2", 2, ("a2",)),
    ]
    by_row = {row.row: row.held_out.kl for row in damage.rows}
    assert all(value > 0 for value in by_row.values())
    # one row alone is a form of the oracle where a range of layers has nothing else to change
    assert by_row["mlp.0"] == pytest.approx(kl(model, FarSkipForm(model, layers=(0, 0))), rel=1e-9)
    assert by_row["moe.1"] == pytest.approx(kl(model, FarSkipForm(model, layers=(1, 1))), rel=1e-9)
    assert by_row["attention.2"] == pytest.approx(kl(model, FarSkipForm(model, connectivity="attention")), rel=1e-9)
    mlp_of_2 = FarSkipForm(model, connectivity="mlp", layers=(2, 2))
    assert by_row["moe.2"] == pytest.approx(kl(model, mlp_of_2), rel=1e-9)
    assert damage.together.kl == pytest.approx(kl(model, FarSkipForm(model)), rel=1e-9)


def test_rows_make_a_connectivity_that_a_manifest_takes(measured):
    model, damage = measured
    wish = connectivity_of(damage, ("moe.2", "attention.2"))
    assert wish == {"attention.2": ("r1",), "moe.2": ("a2",)}
    manifest = describe(model, HELD_OUT[0], connectivity=wish)
    compiled = torch.compile(model, backend="farskip", fullgraph=True, options={"manifest": manifest, **EAGER})
    with torch.no_grad():
        assert torch.equal(compiled(HELD_OUT[0]), FarSkipForm(model, layers=(2, 2))(HELD_OUT[0]))
    with pytest.raises(ConnectivityError, match=r"no damage is known of moe\.7"):
        connectivity_of(damage, ("moe.7",))


def test_sets_of_rows_as_a_whole(measured):
    model, damage = measured
    everything = tuple(row.row for row in damage.rows)
    found = measure_together(model, HELD_OUT, damage, [(), ("moe.2", "attention.2"), everything])
    assert found[()] == damage.original
    assert found["moe.2", "attention.2"].kl == pytest.approx(kl(model, FarSkipForm(model, layers=(2, 2))), rel=1e-9)
    assert found[everything] == damage.together


def test_a_range_and_wrong_wishes():
    model = small(layers=("dense", "moe", "moe"))
    damage = measure_damage(model, HELD_OUT[:1], connectivity="mlp", layers=(1, 2))
    assert [row.row for row in damage.rows] == ["moe.1", "moe.2"]
    with pytest.raises(ConfigError, match="no held-out batches"):
        measure_damage(model, [])
    with pytest.raises(LayerRangeError):
        measure_damage(model, HELD_OUT, layers=(8, 9))
