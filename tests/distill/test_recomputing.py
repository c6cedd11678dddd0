# SPDX-License-Identifier: Apache-2.0
"""Gradient checkpointing: layers are computed again, the numbers stay, and nothing of it is left in the model."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from farskip_compile import ConfigError, reports
from farskip_compile.healing.causal.identity import checksum
from farskip_compile.healing.distill import self_distill
from farskip_compile.healing.distill.recomputing import recomputing
from farskip_compile.models.transformers_form import tiny_deepseek_v3
from farskip_compile.tools.prepare import prepare
from tests.compare import relative_difference
from tests.distill.common import EAGER, batches, small, weights

HELD_OUT = batches(1, seed=7)


def healed(**options):
    torch.manual_seed(0)
    model = tiny_deepseek_v3().double()
    prepare(model)
    reports().clear()
    done = self_distill(
        model, batches(2), held_out=HELD_OUT, steps=2, learning_rate=1e-3, evaluate_every=2, patience=None, **options
    )
    return done, max(report.checkpoints_opened for report in reports().compiles)


def test_the_numbers_stay():
    """With streams, too, which leave the layers that are computed again."""
    plain, none = healed(options=EAGER, stream_weight=2.0)
    again, opened = healed(options=EAGER, stream_weight=2.0, gradient_checkpointing=True)
    assert (none, opened) == (0, len(plain.model.model.layers))
    assert again.after.kl == pytest.approx(plain.after.kl, rel=1e-9)
    expected = weights(plain.model)
    assert max(relative_difference(value, expected[name]) for name, value in weights(again.model).items()) < 1e-6


def test_nothing_is_left_behind():
    model = tiny_deepseek_v3()
    before, named = checksum(model), {name: set(vars(one)) for name, one in model.named_modules()}
    with recomputing(model, wanted=True):
        assert any(getattr(one, "gradient_checkpointing", False) for one in model.modules())
        assert checksum(model) != before
    assert not any(getattr(one, "gradient_checkpointing", False) for one in model.modules())
    assert named == {name: set(vars(one)) for name, one in model.named_modules()}
    assert checksum(model) == before


def test_a_model_without_it_is_refused_before_anything_runs():
    with pytest.raises(ConfigError, match="no gradient checkpointing that can be switched on") as caught:
        self_distill(small(), [], held_out=HELD_OUT, steps=1, gradient_checkpointing=True, options=EAGER)
    assert "torch.utils.checkpoint" in caught.value.way_out
