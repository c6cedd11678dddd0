# SPDX-License-Identifier: Apache-2.0
"""`self_distill` against a training loop written by hand, with the hand-written FarSkip form as the student."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from farskip_compile import ConfigError, load_manifest
from farskip_compile.errors import DenseModelError, DistillationError, LayerRangeError
from farskip_compile.healing.distill import self_distill
from farskip_compile.models import FarSkipForm
from tests.compare import relative_difference
from tests.distill.common import EAGER, batches, small, weights

HELD_OUT = batches(2, seed=7)


def by_hand(model, data, *, steps, accumulate=1, connectivity="full", rate=1e-3, clip=1.0, objective="kl", warm_up=0):
    """The paper's recipe in plain torch: nothing of the package but the form that is the oracle."""
    teacher, student = copy.deepcopy(model).eval(), FarSkipForm(model, connectivity=connectivity)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], rate, (0.9, 0.95)
    )
    losses, taken = [], 0
    for step in range(steps):
        if step < warm_up:
            part = (step + 1) / (warm_up + 1)
        else:
            part = 0.5 * (1 + torch.tensor(torch.pi * (step - warm_up) / (steps - warm_up), dtype=torch.float64).cos())
        for group in optimizer.param_groups:
            group["lr"] = rate * float(part)
        total = 0.0
        for _ in range(accumulate):
            ids = data[taken % len(data)]
            taken += 1
            q = student(ids)[:, :-1].log_softmax(-1)
            if objective == "kl":
                with torch.no_grad():
                    p = teacher(ids)[:, :-1].log_softmax(-1)
                loss = (p.exp() * (p - q)).sum()
            else:
                loss = -q.gather(-1, ids[:, 1:, None]).sum()
            loss = loss / (accumulate * ids[:, 1:].numel())
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append((total, norm.item()))
    return losses


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"accumulate": 3},
        {"connectivity": "attention"},
        {"connectivity": "mlp", "clip": 0.05},
        {"objective": "next_token"},
        {"warm_up": 3},
    ],
    ids=str,
)
def test_it_is_the_loop_written_by_hand(case, tmp_path):
    model, oracle, data = small(), small(), batches(5)
    start = weights(model)
    expected = by_hand(oracle, data, steps=6, **case)
    options = {{"warm_up": "warm_up_steps"}.get(name, name): value for name, value in case.items()}
    done = self_distill(
        model, data, held_out=HELD_OUT, steps=6, learning_rate=1e-3, weight_decay=0.1, options=EAGER, patience=None,
        evaluate_every=6, output=tmp_path, **options,
    )  # fmt: skip
    told = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()][1:]
    assert [line["step"] for line in told] == [1, 2, 3, 4, 5, 6]
    for line, (loss, norm) in zip(told, expected, strict=True):
        assert line["loss"] == pytest.approx(loss, rel=1e-9)
        assert line["gradient_norm"] == pytest.approx(norm, rel=1e-9)
    assert done.tokens == 6 * 10 * case.get("accumulate", 1)
    last = load_file(tmp_path / "state-00000006" / "rank-0.safetensors")  # the model has those of the best step
    apart = {name: relative_difference(last[f"value/{name}"], value) for name, value in weights(oracle).items()}
    assert max(apart.values()) < 1e-6, apart  # AdamW divides rounding by itself where a gradient vanishes
    assert max(relative_difference(last[f"value/{name}"], value) for name, value in start.items()) > 1e-3


def test_the_student_learns_what_the_original_says():
    """From a damaged start, on real structure: held-out KL falls to a part of what it was."""
    model = small()
    original = copy.deepcopy(model)
    done = self_distill(
        model, batches(16), held_out=HELD_OUT, steps=80, learning_rate=3e-3, options=EAGER, evaluate_every=20
    )
    assert done.after.kl < 0.9 * done.before.kl
    with torch.no_grad():
        ids = torch.cat(HELD_OUT)
        p, q = original(ids)[:, :-1].log_softmax(-1), FarSkipForm(model)(ids)[:, :-1].log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).mean().item()
    assert done.after.kl == pytest.approx(kl, rel=1e-9)
    same = (p.argmax(-1) == q.argmax(-1)).double().mean().item()
    assert done.after.top1 == pytest.approx(same)
    loss = -q.gather(-1, ids[:, 1:, None]).mean().item()
    assert done.after.loss == pytest.approx(loss, rel=1e-9)


def test_under_none_there_is_nothing_to_learn():
    model = small()
    start = weights(model)
    done = self_distill(model, batches(3), held_out=HELD_OUT, connectivity="none", steps=2, options=EAGER)
    assert done.before.kl == 0.0
    assert done.before.top1 == 1.0
    assert done.best_step == 0
    assert all(torch.equal(value, start[name]) for name, value in weights(model).items())


def test_a_collapse_ends_early_and_the_best_weights_are_restored():
    model = small()
    done = self_distill(
        model, batches(4), held_out=HELD_OUT, steps=200, learning_rate=0.3, clip=None, options=EAGER, evaluate_every=1,
        patience=4,
    )  # fmt: skip
    assert done.stopped_early
    assert done.steps == done.best_step + 4 < 200
    best = min(found.kl for _, found in done.history)
    assert done.after.kl == best == dict(done.history)[done.best_step].kl


class Aliased(nn.Module):
    """Uses a parameter through a list, too, which is neither module nor parameter."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.again = [model.lm_head.weight]

    def forward(self, ids):
        return self.model(ids) + 0.1 * torch.nn.functional.linear(self.model.token_embedding(ids), self.again[0])


def test_a_teacher_that_moves_with_its_student_is_refused():
    with pytest.raises(ConfigError, match="no longer gives the logits"):
        self_distill(Aliased(small()), batches(2), held_out=HELD_OUT, steps=2, learning_rate=1e-2, options=EAGER)


def test_what_is_left_behind():
    model = small(dropout=0.3).train()
    model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    self_distill(model, batches(2), held_out=HELD_OUT, steps=2, options=EAGER)
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(generator, torch.get_rng_state())
    assert all(value.grad is None for value in model.parameters())


def test_checkpoint_and_manifest(tmp_path):
    model = small()
    done = self_distill(
        model, batches(2), held_out=HELD_OUT, steps=2, layers=(1, 1), options=EAGER, output=tmp_path, evaluate_every=2
    )
    manifest = load_manifest(tmp_path / "model")
    assert manifest == done.manifest
    assert (manifest.connectivity, manifest.layers) == ("full", (1, 1))
    from safetensors.torch import load_model

    again = small(seed=5)
    load_model(again, str(tmp_path / "model" / "model.safetensors"))
    compiled = torch.compile(again, backend="farskip", fullgraph=True, options={"manifest": manifest, **EAGER})
    assert torch.equal(compiled(HELD_OUT[0]), FarSkipForm(model, layers=(1, 1))(HELD_OUT[0]))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"connectivty": "full"}, ConfigError, "did you mean 'connectivity'"),
        ({"connectivity": "half"}, ConfigError, "connectivity='half' is unknown"),
        ({"layers": (7, 9)}, LayerRangeError, "layers"),
        ({"steps": 0}, ConfigError, "steps=0 is not a count"),
        ({"learning_rate": float("nan")}, ConfigError, "learning_rate=nan"),
        ({"teacher": "cache"}, ConfigError, "needs a folder"),
        ({"options": {"layers": (0, 1)}}, ConfigError, "options of their own"),
        ({"tensorboard": True}, ConfigError, "needs a folder"),
        ({"objective": "l2"}, ConfigError, "one of kl, next_token"),
    ],
)
def test_wrong_wishes_are_refused_before_anything_moves(options, error, words):
    model = small()
    start = weights(model)
    with pytest.raises(error, match=words):
        self_distill(model, batches(2), held_out=HELD_OUT, **{"steps": 2, **options})
    assert all(torch.equal(value, start[name]) for name, value in weights(model).items())


def test_models_and_data_that_can_not_be_used():
    with pytest.raises(DenseModelError):
        self_distill(small(layers=("dense", "dense"), shared_experts=0), batches(2), held_out=HELD_OUT, steps=1)
    with pytest.raises(ConfigError, match="no held-out batches"):
        self_distill(small(), batches(2), held_out=[], steps=1)
    nothing = {"input_ids": batches(1)[0], "labels": torch.full((2, 6), -100)}
    with pytest.raises(DistillationError, match="is a target"):
        self_distill(small(), [nothing], held_out=HELD_OUT, steps=1, options=EAGER)


def test_a_loss_that_is_no_number_ends_the_run_with_the_best_weights():
    model = small()
    start = weights(model)
    with pytest.raises(DistillationError, match="the loss is"):
        self_distill(model, batches(3), held_out=HELD_OUT, steps=50, learning_rate=1e200, clip=None, options=EAGER)
    assert all(torch.equal(value, start[name]) for name, value in weights(model).items())
