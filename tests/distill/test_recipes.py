# SPDX-License-Identifier: Apache-2.0
"""What depends on the size of a step and of a model, and what a recipe fixes."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from farskip_compile import ConfigError
from farskip_compile.healing.causal.ranks import TrainingRanks
from farskip_compile.healing.distill import DistillConfig, self_distill
from farskip_compile.healing.distill.optimizer import beta2_for, usual_rate
from tests.distill.common import EAGER, batches, small

HELD_OUT = batches(1, seed=7)


def forgotten(beta2: float, tokens: int) -> float:
    """Tokens after which a squared gradient has half of its weight, by repeated multiplication."""
    weight, steps = 1.0, 0
    while weight > 0.5:
        weight, steps = weight * beta2, steps + 1
    return steps * tokens


@pytest.mark.parametrize("tokens", [2**12, 2**14, 2**16, 2**19])
def test_tokens_until_half_is_forgotten_stay_the_same(tokens):
    beta2 = beta2_for(DistillConfig(steps=10**6), tokens)
    assert forgotten(beta2, tokens) == pytest.approx(7.086e6, abs=tokens)
    given = beta2_for(DistillConfig(steps=10, beta2_half_life=3e6), tokens)
    assert forgotten(given, tokens) == pytest.approx(3e6, abs=tokens)


def test_bounds_of_the_second_beta():
    assert beta2_for(DistillConfig(), 2**19) == pytest.approx(0.95)
    assert beta2_for(DistillConfig(), 2**22) == 0.95
    assert forgotten(beta2_for(DistillConfig(steps=400), 1), 1) == 40  # a tenth of the run
    assert beta2_for(DistillConfig(steps=20), 1) == 0.95
    assert beta2_for(DistillConfig(steps=10**6, recipe="paper"), 2**12) == 0.95
    assert beta2_for(DistillConfig(steps=1, betas=(0.9, 0.99)), 2**12) == 0.99


def test_the_optimizer_has_it(tmp_path):
    """After one step from zero the second moment is (1 - beta2) g^2, and the first one (1 - beta1) g."""
    options = {"held_out": HELD_OUT, "steps": 1, "options": EAGER, "evaluate_every": 1}
    done = self_distill(small(), batches(1), output=tmp_path, beta2_half_life=20.0, **options)
    state = load_file(tmp_path / "state-00000001" / "rank-0.safetensors")
    name = "layers.0.attention.query_up.weight"
    squares, means = state[f"optimizer.exp_avg_sq/{name}"], state[f"optimizer.exp_avg/{name}"]
    beta2 = 0.5 ** (10 / 20)
    assert torch.allclose(squares, (1 - beta2) * (means / 0.1) ** 2, rtol=1e-9)
    assert done.notes == {"recipe": "default", "learning_rate": 2e-5, "beta2": beta2}


def test_rates_by_size():
    def of(numel):
        model = nn.Linear(numel, 1, bias=False, device="meta")
        return usual_rate(model, TrainingRanks(model))

    assert of(500_000) == pytest.approx(2e-3, rel=0.02)
    assert 2e-5 < of(109 * 10**9) < of(16 * 10**9) < 8e-5
    frozen = nn.Sequential(nn.Linear(1000, 1, bias=False), nn.Linear(10**6, 1, bias=False))
    frozen[1].requires_grad_(False)
    assert usual_rate(frozen, TrainingRanks(frozen)) == pytest.approx(0.016)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"recipe": "paper", "fold": True}, "fold=True is not the paper's recipe, which has False"),
        ({"recipe": "paper", "stream_weight": 1.0}, "stream_weight=1.0 is not the paper's"),
        ({"recipe": "paper", "objective": "next_token"}, "objective='next_token' is not the paper's"),
        ({"recipe": "paper", "betas": (0.9, 0.99)}, "is not the paper's recipe"),
        ({"recipe": "paper", "beta2_half_life": 1e6}, "is not the paper's recipe"),
        ({"recipe": "paper", "learning_rate": "auto"}, "tries no learning rates"),
        ({"recipe": "best"}, "recipe='best' is unknown"),
        ({"learning_rate": "quick"}, "learning_rate='quick' is not a number"),
        ({"beta2_half_life": 0}, "forgets everything"),
        ({"beta2_half_life": -1}, "beta2_half_life=-1 is not a number"),
        ({"stream_weight": -1.0}, "stream_weight=-1.0 is not a number"),
        ({"fold": 1}, "fold=1 is neither true nor false"),
        ({"gradient_checkpointing": "yes"}, "neither true nor false"),
        ({"logits_memory": 0}, "logits_memory=0 is not a count"),
        ({"fold_batches": 0}, "fold_batches=0 is not a count"),
    ],
)
def test_wrong_wishes(options, words):
    with pytest.raises(ConfigError, match=words):
        DistillConfig(**options)


def test_the_paper_by_one_word():
    config = DistillConfig(recipe="paper")
    assert (config.learning_rate, config.betas, config.objective) == (2e-5, (0.9, 0.95), "kl")
    assert not config.fold
    assert config.stream_weight == config.final_learning_rate == 0.0
    DistillConfig(recipe="paper", learning_rate=8e-5)
