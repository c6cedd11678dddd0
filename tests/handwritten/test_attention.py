# SPDX-License-Identifier: Apache-2.0
"""How attention is written by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

import farskip_compile
from farskip_compile import CompileReport
from tests.handwritten.decoder import (
    HEADS,
    TOKENS,
    WIDTH,
    Attention,
    Decoder,
    assert_is_the_form_by_hand,
    farskip_form,
    token_ids,
)
from tests.handwritten.test_adds import TwoBranches, stems

TERMS = ["e", "a0", "r0", "s0", "a1", "r1", "s1", "a2", "r2", "s2"]


def attend(q: Tensor, k: Tensor, v: Tensor, first: int = 0) -> Tensor:
    """The queries stand at positions `first` and following."""
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    later = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).triu(1 + first)
    return scores.masked_fill(later, float("-inf")).softmax(-1) @ v


class Cached(Attention):
    """Keys and values go through a cache."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(2, HEADS, 2 * TOKENS, WIDTH // HEADS))
        self.first = 0

    def put(self, cache: Tensor, new: Tensor) -> Tensor:
        last = self.first + new.shape[2]
        if self.how == "slice":
            cache[:, :, self.first : last] = new
        elif self.how == "copy":
            cache[:, :, self.first : last].copy_(new)
        else:
            cache.index_copy_(2, torch.arange(self.first, last), new)
        return cache[:, :, :last]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        k, v = self.put(self.keys, k), self.put(self.values, v)
        return self.out(attend(q, k, v, self.first).transpose(1, 2).flatten(2))


WAYS = ["slice", "copy", "index_copy"]


@pytest.mark.parametrize("how", WAYS)
def test_over_a_cache_that_was_just_written(how: str) -> None:
    reports: list[CompileReport] = []
    with torch.no_grad():
        model = Decoder(TwoBranches, attention=lambda: Cached(how)).double()
        torch.compiler.reset()
        options = {"inner": "eager", "on_report": reports.append}
        compiled = torch.compile(model, backend="farskip", fullgraph=True, options=options)
        plain = Decoder(TwoBranches, attention=lambda: Cached(how)).double()
        plain.load_state_dict(model.state_dict())
        for first in (0, TOKENS):  # a prompt, then as many tokens behind it
            for each in (model, plain):
                for attention in each.attentions:
                    attention.first = first
            assert torch.equal(compiled(token_ids()), farskip_form(plain, token_ids()))
            assert stems(reports[-1]) == TERMS


class Mixture(Attention):
    """A router picks one of two projections of the queries."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 2)
        self.queries = nn.Parameter(torch.randn(2, WIDTH, WIDTH) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(1, -1)
        q = torch.einsum("bsd,bsde->bse", x, self.queries[chosen[..., 0]]) * weights
        _, k, v = self.qkv(x).chunk(3, -1)
        return self.out(attend(q, k, v))


def test_a_mixture_of_attentions() -> None:
    assert stems(assert_is_the_form_by_hand(Decoder(TwoBranches, attention=Mixture))) == TERMS


class Flex(Attention):
    """Its mask is made in the graph, by a `torch.vmap` that was traced."""

    def heads(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return flex_attention(q, k, v).transpose(1, 2).flatten(2)


def test_flex_attention_with_a_mask_that_is_made_in_the_graph() -> None:
    """It has no backward on CPUs."""
    model = Decoder(TwoBranches, attention=Flex).requires_grad_(False)
    found = torch.compile(model, backend=farskip_compile.backend(inner="eager"), fullgraph=True)(token_ids())
    assert torch.equal(found, farskip_form(model, token_ids()))
