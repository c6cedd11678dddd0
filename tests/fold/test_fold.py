# SPDX-License-Identifier: Apache-2.0
"""The fold of a whole model, against one by hand."""

from __future__ import annotations

import copy

import pytest
import torch

from farskip_compile import ConfigError
from farskip_compile.healing.fold import fold
from farskip_compile.healing.fold.lab import Lab
from tests.compare import relative_difference
from tests.fold import by_hand

SHAPE = (4, 16)


def batches(count: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, by_hand.VOCABULARY, SHAPE, generator=generator) for _ in range(count)]


CALIBRATION, HELD_OUT = batches(6, 1), batches(3, 2)


@pytest.mark.parametrize("outputs", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equal_to_the_fold_by_hand(seed, outputs):
    model = by_hand.Model(seed)
    teacher = copy.deepcopy(model)
    wanted, verdicts = by_hand.folded(model, CALIBRATION, HELD_OUT, outputs=outputs)
    done = fold(model, CALIBRATION, held_out=HELD_OUT, outputs=outputs)
    rows = ["moe.0", "attention.1", "moe.1", "attention.2", "moe.2"]
    assert [read.row for read in done.reads] == [row for row in rows for _ in range(1 + outputs)]
    assert [read.accepted for read in done.reads] == verdicts
    assert True in verdicts
    for name, value in model.state_dict().items():
        assert relative_difference(value, wanted.state_dict()[name]) < 1e-8, name
    assert done.kl_before == pytest.approx(by_hand.kl(teacher, teacher, HELD_OUT), rel=1e-5)
    assert done.kl_after == pytest.approx(by_hand.kl(teacher, model, HELD_OUT), rel=1e-5)
    assert done.tokens == 6 * 4 * 15


def test_outputs_repair_more_and_what_is_reported_is_so():
    model = by_hand.Model(3)
    teacher = copy.deepcopy(model)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    done = fold(model, CALIBRATION, held_out=HELD_OUT, outputs=True)
    assert {name: value.shape for name, value in model.state_dict().items()} == shapes
    kl, changed = done.kl_before, set()
    for read in done.reads:
        assert read.kl_before == pytest.approx(kl, rel=1e-12)
        assert read.accepted == (read.kl < kl)
        kl = read.kl if read.accepted else kl
        changed |= set(read.parameters) if read.accepted else set()
    assert kl == done.kl_after < done.kl_before
    assert {True, False} == {read.outputs for read in done.reads}
    assert changed == {
        name for name, value in model.named_parameters() if not torch.equal(value, teacher.state_dict()[name])
    }
    assert done.kl_after == pytest.approx(by_hand.kl(teacher, model, HELD_OUT), rel=1e-5)


def test_an_interrupted_fold_continues_to_the_same_bits(tmp_path):
    whole, parts = by_hand.Model(4), by_hand.Model(4)
    done = fold(whole, CALIBRATION, held_out=HELD_OUT)

    def interrupt(what, at, total):
        if (what, at) == ("fold", 4):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fold(by_hand.Model(4), CALIBRATION, held_out=HELD_OUT, folder=tmp_path, on_site=interrupt)
    assert len(list(tmp_path.glob("read-*.json"))) == 4
    again = fold(parts, CALIBRATION, held_out=HELD_OUT, folder=tmp_path)
    assert again == done
    assert all(torch.equal(value, parts.state_dict()[name]) for name, value in whole.state_dict().items())
    for other in ({"calibration": CALIBRATION[:-1]}, {"outputs": False}, {"connectivity": "mlp"}):
        asked = {"calibration": CALIBRATION, "held_out": HELD_OUT, **other}
        with pytest.raises(ConfigError, match="holds the fold of another"):
            fold(by_hand.Model(4), folder=tmp_path, **asked)
    with pytest.raises(ConfigError, match="holds the fold of another model"):
        fold(by_hand.Model(5), CALIBRATION, held_out=HELD_OUT, folder=tmp_path)


def test_wrong_batches():
    with pytest.raises(ConfigError, match="needs calibration and held-out batches"):
        fold(by_hand.Model(), [], held_out=HELD_OUT)
    with pytest.raises(ConfigError, match="several shapes"):
        fold(by_hand.Model(), [*CALIBRATION, CALIBRATION[0][:, :-2]], held_out=HELD_OUT)


def test_padding_is_not_fitted():
    mask = torch.ones(SHAPE, dtype=torch.long)
    mask[:, 12:] = 0
    padded = [{"input_ids": ids, "attention_mask": mask} for ids in CALIBRATION]
    found = []
    for noise in (0, 5):
        model = Masked(6)
        text = [
            {**one, "input_ids": one["input_ids"].roll(noise, 0) * (1 - mask) + one["input_ids"] * mask}
            for one in padded
        ]
        fold(model, text, held_out=[{"input_ids": ids, "attention_mask": mask} for ids in HELD_OUT])
        found.append(model.state_dict())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


class Masked(by_hand.Model):
    """Takes a mask; padding stands at the end, where causal attention does not look."""

    def forward(self, input_ids, attention_mask):
        return super().forward(input_ids)


class Tied(by_hand.Model):
    """The second layer's keys are the third one's; the head is the embedding."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.layers[2].k.weight = self.layers[1].k.weight
        self.head.weight = self.embed.weight


def test_tied_parameters_are_left_alone_and_said():
    model = Tied(1)
    before = model.layers[1].k.weight.detach().clone()
    done = fold(model, CALIBRATION, held_out=HELD_OUT)
    assert torch.equal(model.layers[1].k.weight, before)
    said = [(one.row, one.parameter) for one in done.left_alone if "used elsewhere" in one.reason]
    assert said == [("attention.1", "layers.1.k.weight"), ("attention.2", "layers.1.k.weight")]
    assert not any("layers.1.k.weight" in read.parameters for read in done.reads)
    assert any("layers.1.q.weight" in read.parameters for read in done.reads)


class SharedMemory(by_hand.Model):
    """Keys and values of a layer are two parameters in one memory."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        both = torch.cat([self.layers[1].k.weight, self.layers[1].v.weight]).detach()
        for linear, part in zip((self.layers[1].k, self.layers[1].v), both.chunk(2), strict=True):
            linear.weight = torch.nn.Parameter(part)


def test_parameters_in_one_memory_are_left_alone():
    done = fold(SharedMemory(1), CALIBRATION, held_out=HELD_OUT)
    said = [(one.row, one.parameter) for one in done.left_alone if "shares its memory" in one.reason]
    assert said == [("attention.1", "layers.1.k.weight"), ("attention.1", "layers.1.v.weight")]


class EarlyCopy(by_hand.Model):
    """Copies a layer's queries before the value that they read is computed."""

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for layer in self.layers:
            q, k, v = layer.q.weight.clone(), layer.k.weight.view(-1, by_hand.WIDTH), layer.v.weight
            n = layer.norm_1(x)
            read = [torch.nn.functional.linear(n, weight) for weight in (q, k, v)]
            x = x + layer.o(torch.nn.functional.scaled_dot_product_attention(*read, is_causal=True))
            x = x + layer.experts(layer.norm_2(x))
        return self.head(self.norm(x))


def test_what_is_copied_before_the_value_is_known_is_left_alone():
    model = EarlyCopy(1)
    teacher = copy.deepcopy(model)
    done = fold(model, CALIBRATION, held_out=HELD_OUT)
    said = [(one.row, one.parameter) for one in done.left_alone if "a copy of it" in one.reason]
    assert said == [("attention.1", "layers.1.q.weight"), ("attention.2", "layers.2.q.weight")]
    assert any("layers.1.k.weight" in read.parameters for read in done.reads)  # a view is not a copy
    assert done.kl_after == pytest.approx(by_hand.kl(teacher, model, HELD_OUT), rel=1e-5)


class Quantised(by_hand.Model):
    """The keys of one layer are whole numbers and a scale."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        weight = self.layers[1].k.weight.detach()
        scale = weight.abs().max() / 127
        self.layers[1].k = Whole(
            torch.nn.Parameter((weight / scale).round().to(torch.int8), requires_grad=False), scale
        )


class Whole(torch.nn.Module):
    def __init__(self, weight: torch.nn.Parameter, scale: torch.Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.register_buffer("scale", scale)

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight.to(x.dtype) * self.scale)


def test_quantised_parameters_are_left_alone_and_said():
    done = fold(Quantised(1), CALIBRATION, held_out=HELD_OUT)
    said = {(one.row, one.parameter) for one in done.left_alone if "quantised" in one.reason}
    assert said == {("attention.1", "layers.1.k.weight")}
    (read,) = (read for read in done.reads if read.row == "attention.1" and not read.outputs)
    assert read.parameters == ("layers.1.q.weight", "layers.1.v.weight")


def test_each_parameter_is_looked_at_for_its_own_row_alone(monkeypatch):
    """Of a sharded model, looking at one is gathering it."""
    model, seen = by_hand.Model(1), []
    names = {id(value): name for name, value in model.named_parameters()}
    value = Lab.value

    def look(self, node):
        found = value(self, node)
        seen.append(names.get(id(found), ""))
        return found

    monkeypatch.setattr(Lab, "value", look)
    fold(model, CALIBRATION[:1], held_out=HELD_OUT[:1])
    assert "embed.weight" not in seen
    assert "head.weight" not in seen
    places = [int(name.split(".")[1]) for name in seen if name.startswith("layers.")]
    assert places == sorted(places)  # layer after layer, none again
