# SPDX-License-Identifier: Apache-2.0
"""An encoder and a decoder in one graph: refused if both have experts, whatever their lengths; the way out works."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import farskip_compile
from farskip_compile.errors import NotASumError, UnsupportedPatternError
from farskip_compile.records.compile import Outcome
from tests.verify import nets
from tests.verify.nets import Attention, Net, inputs
from tests.verify.test_account import refusal_of, report_of

OPTIONS = {"inner": "eager"}
SHORTER = 4
"""Tokens of a target that is shorter than its source."""


class Encoder(Net):
    """Layers with experts, or dense ones, and a norm at the end."""

    def __init__(self, layers: int, *, dense: bool = False) -> None:
        super().__init__(layers, experts={n: nn.Linear(nets.WIDTH, nets.WIDTH) for n in range(layers * dense)})

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        for number in range(len(self.mixers)):
            h = self.layer(number, h)
        return self.norms[-1](h)


class Decoder(Net):
    """A decoder whose layers read `memory`, of a source, between their attention and their experts."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers)
        self.cross = nn.ModuleList([Attention() for _ in range(layers)])

    def forward(self, ids: Tensor, memory: Tensor) -> Tensor:
        h = self.embed(ids)
        for number, cross in enumerate(self.cross):
            h = h + self.mixers[number](self.norms[2 * number](h))
            q = cross.qkv(h)[..., : nets.WIDTH]
            h = h + cross.out((q @ memory.transpose(1, 2)).softmax(-1) @ memory)
            h = h + self.experts[number](self.norms[2 * number + 1](h))
        return self.head(self.norms[-1](h))


class Both(nn.Module):
    """An encoder, and a decoder that reads what it returns."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.decoder(target, self.encoder(source))


@pytest.mark.parametrize(("encoder", "decoder"), [(3, 2), (2, 3)])
@pytest.mark.parametrize("length", [nets.TOKENS, SHORTER])
def test_two_stacks_with_experts_are_refused_and_the_way_out_works(encoder: int, decoder: int, length: int) -> None:
    model, targets = Both(Encoder(encoder), Decoder(decoder)), inputs()[:, :length]
    error = refusal_of(model, inputs(), targets)
    assert isinstance(error, UnsupportedPatternError | NotASumError)
    assert "each as a model of its own" in error.way_out
    torch.compiler.reset()
    for stack in (model.encoder, model.decoder):
        stack.compile(backend="farskip", fullgraph=True, options=OPTIONS)
    model(inputs(), targets)
    first, second = farskip_compile.reports().compiles
    assert first.outcome is second.outcome is Outcome.REWIRED
    assert first.left_out["attention.1"] == second.left_out["attention.1"] == ("r0",)


@pytest.mark.parametrize("layers", [2, 3])
def test_a_stack_that_begins_with_the_mean_of_another_one_is_refused(layers: int) -> None:
    """The rows of the second stack are mixed from its beginning; of two stacks of one length the first may be read."""

    class Pooled(Both):
        def forward(self, source: Tensor, target: Tensor) -> Tensor:
            h = self.decoder.embed(target) + self.encoder(source).mean(1, keepdim=True)
            for number in range(layers):
                h = self.decoder.layer(number, h)
            return self.decoder.head(h)

    error = refusal_of(Pooled(Encoder(2), Decoder(layers)), inputs(), inputs()[:, :SHORTER])
    assert isinstance(error, UnsupportedPatternError | NotASumError)


def test_a_dense_tower_is_left_as_it_is_and_named() -> None:
    report = report_of(Both(Encoder(2, dense=True), Decoder(3)), inputs(), inputs()[:, :SHORTER])
    assert report.outcome is Outcome.REWIRED
    assert any("apart from the stack" in part and "mixes tokens" in part for part in report.beside), report.beside
