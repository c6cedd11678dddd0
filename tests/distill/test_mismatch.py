# SPDX-License-Identifier: Apache-2.0
"""The mismatch of two streams, and the layers that it is taken behind, by hand and without a run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from farskip_compile import ConfigError
from farskip_compile.healing.causal.asking import ModelOutput
from farskip_compile.healing.causal.batches import as_batch
from farskip_compile.healing.causal.ranks import TrainingRanks
from farskip_compile.healing.distill.stream import mismatch, stream_layers, weight_at

TARGETS = torch.tensor([[1, 2, -100, 4], [-100, -100, 3, 2]])


def answer(seed: int, **kind) -> ModelOutput:
    generator = torch.Generator().manual_seed(seed)
    streams = [torch.randn(2, 5, 3, generator=generator, dtype=torch.float64).to(**kind) for _ in range(2)]
    return ModelOutput(torch.zeros(1), None, tuple(one.requires_grad_() for one in streams))


def found(student: ModelOutput, teacher: ModelOutput) -> tuple[torch.Tensor, int]:
    return mismatch(student, teacher, TARGETS, TrainingRanks(nn.Linear(1, 1)))


def test_it_is_the_mean_over_layers_of_the_part_that_differs_where_there_are_targets() -> None:
    student, teacher = answer(0), answer(1)
    part, tokens = found(student, teacher)
    by_hand = 0.0
    for ours, theirs in zip(student.streams, teacher.streams, strict=True):
        apart = size = 0.0
        for row, position in (TARGETS != -100).nonzero().tolist():
            apart += float((ours[row, position] - theirs[row, position]).square().sum())
            size += float(theirs[row, position].square().sum())
        by_hand += apart / size / 2
    assert part.item() == pytest.approx(by_hand, rel=1e-12)
    assert tokens == 5
    part.backward()
    assert all(one.grad is not None and not one.grad[:, -1].any() for one in student.streams)
    assert all(one.grad is None for one in teacher.streams)


def test_a_stream_of_zeros_counts_as_a_layer_without_a_mismatch() -> None:
    student, teacher = answer(0), answer(1)
    part, _ = found(student, teacher)
    empty = ModelOutput(torch.zeros(1), None, (teacher.streams[0], torch.zeros_like(teacher.streams[1])))
    second = found(
        ModelOutput(torch.zeros(1), None, student.streams[1:]), ModelOutput(torch.zeros(1), None, teacher.streams[1:])
    )
    assert found(student, empty)[0].item() == pytest.approx(part.item() - second[0].item() / 2, rel=1e-12)
    none = ModelOutput(torch.zeros(1), None, tuple(map(torch.zeros_like, teacher.streams)))
    assert found(student, none)[0].item() == 0.0


def test_narrow_numbers_are_added_up_in_float32() -> None:
    part, _ = found(answer(0, dtype=torch.bfloat16), answer(1, dtype=torch.bfloat16))
    assert part.dtype == torch.float32


def test_the_weight_falls_to_zero_on_a_straight_line() -> None:
    config = SimpleNamespace(stream_weight=3.0, steps=4)
    assert [weight_at(step, config) for step in range(5)] == [3.0, 2.25, 1.5, 0.75, 0.0]


class Layer(nn.Module):
    """Adds something to the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return x + self.linear(x)


class Model(nn.Module):
    """Layers; `between` stands between the first and the second one, `flat` makes the stream two-dimensional."""

    def __init__(self, between: float = 1.0, flat: bool = False) -> None:
        super().__init__()
        self.embed, self.layers = nn.Embedding(9, 4), nn.ModuleList(Layer() for _ in range(3))
        self.between, self.flat = between, flat

    def forward(self, ids):
        x = self.embed(ids)
        x = self.layers[0](x.flatten(0, 1) if self.flat else x)
        if self.between != 1.0:
            x = x * self.between
        return self.layers[2](self.layers[1](x)).view(*ids.shape, 4)


BATCH = as_batch(torch.arange(6).view(1, 6), torch.device("cpu"))


def test_layers_are_those_that_pass_the_stream_on_and_are_left_as_they_were() -> None:
    model = Model()
    assert stream_layers(model, BATCH) == list(model.layers)
    assert not any(layer._forward_hooks for layer in model.layers)


@pytest.mark.parametrize("model", [Model(between=2.0), Model(flat=True)], ids=["not handed on", "without sequences"])
def test_layers_that_do_not_pass_one_stream_on_are_refused(model: Model) -> None:
    with pytest.raises(ConfigError, match=r"layers\.0 to layers\.2 do not run once each"):
        stream_layers(model, BATCH)
    assert not any(layer._forward_hooks for layer in model.layers)
