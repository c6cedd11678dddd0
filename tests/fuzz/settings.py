# SPDX-License-Identifier: Apache-2.0
"""What layers stand in, other than one plain stack: a part of a model, a higher-order operator, two stacks.

Contract: takes a `Decoder` of `tests.handwritten`, and gives a model with its layers, and what it is called with. Each
of them has to be refused, whatever style its layers are in: rewired, it would be half of a FarSkip model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.handwritten.decoder import WIDTH, Decoder, token_ids

Setting = Callable[[Decoder], tuple[nn.Module, tuple[Tensor, ...]]]


def hidden_states() -> Tensor:
    """Of two sequences, as some layer gives them."""
    return torch.randn(*token_ids().shape, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class OneLayer(nn.Module):
    """The last layer, as `layer.compile()` gives it to the backend; `half`: from its experts on, or up to them."""

    def __init__(self, whole: Decoder, half: str = "") -> None:
        super().__init__()
        self.attention, self.before = whole.attentions[-1], whole.before[-1]
        self.experts, self.between = whole.experts[-1], whole.between[-1]
        self.add, self.half = whole.adds[-1], half

    def forward(self, h: Tensor) -> Tensor:
        if self.half != "experts":
            h = self.add(h, self.attention(self.before(h)))
        return h if self.half == "attention" else self.add(h, self.experts(self.between(h)))


class InCond(nn.Module):
    """The layer `number` is inside `torch.cond`."""

    def __init__(self, whole: Decoder, number: int) -> None:
        super().__init__()
        self.whole, self.number = whole, number

    def forward(self, ids: Tensor) -> Tensor:
        whole = self.whole
        h = whole.embed(ids)
        for number in range(len(whole.adds)):

            def layer(x: Tensor, number: int = number) -> Tensor:
                x = whole.adds[number](x, whole.attentions[number](whole.before[number](x)))
                return whole.adds[number](x, whole.experts[number](whole.between[number](x)))

            h = torch.cond(h.sum() > 0, layer, lambda x: x + 1.0, [h]) if number == self.number else layer(h)
        return whole.head(whole.last(h))


class TwoStacks(nn.Module):
    """An encoder, and a decoder of the same layers that attends to it; `tokens` is the decoder's length."""

    def __init__(self, whole: Decoder, tokens: int) -> None:
        super().__init__()
        self.encoder, self.decoder = whole, Decoder(_like(whole.experts), _like(whole.attentions), whole.adds, 1)
        self.decoder.double()
        self.query, self.memory = nn.Linear(WIDTH, WIDTH).double(), nn.Linear(WIDTH, 2 * WIDTH).double()
        self.tokens = tokens

    def forward(self, ids: Tensor) -> Tensor:
        h = self.encoder.embed(ids)
        encoder = self.encoder
        for number, add in enumerate(encoder.adds):
            h = add(h, encoder.attentions[number](encoder.before[number](h)))
            h = add(h, encoder.experts[number](encoder.between[number](h)))
        keys, values = self.memory(encoder.last(h)).chunk(2, -1)
        decoder = self.decoder
        y = decoder.embed(ids[:, : self.tokens])
        y = y + F.scaled_dot_product_attention(self.query(y), keys, values)
        y = y + decoder.attentions[0](decoder.before[0](y))
        y = y + decoder.experts[0](decoder.between[0](y))
        return decoder.head(decoder.last(y))


def _like(modules: nn.ModuleList) -> list[Callable[[], nn.Module]]:
    """New ones of the kind of the first."""
    return [type(modules[0])]


def part(half: str) -> Setting:
    """One layer, or a half of it."""
    return lambda whole: (OneLayer(whole, half), (hidden_states(),))


SETTINGS: dict[str, Setting] = {
    "one layer": part(""),
    "half a layer, experts": part("experts"),
    "half a layer, attention": part("attention"),
    "in cond, first": lambda whole: (InCond(whole, 0), (token_ids(),)),
    "in cond, last": lambda whole: (InCond(whole, len(whole.adds) - 1), (token_ids(),)),
    "two stacks": lambda whole: (TwoStacks(whole, token_ids().shape[1]), (token_ids(),)),
    "two stacks, unlike": lambda whole: (TwoStacks(whole, token_ids().shape[1] - 2), (token_ids(),)),
}
