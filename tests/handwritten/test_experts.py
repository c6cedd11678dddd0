# SPDX-License-Identifier: Apache-2.0
"""How experts are written by hand: how tokens reach them, and how their output meets the shared experts'."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.handwritten.decoder import EXPERTS, WIDTH, Decoder, Experts, assert_is_the_form_by_hand


class IntoShared(Experts):
    """The experts' output is added into that of the shared experts, in one of the ways that torch has."""

    how = ""

    def forward(self, x: Tensor) -> Tensor:
        assert self.shared is not None
        flat = x.flatten(0, 1)
        return self.accumulate(self.shared(flat), flat).view_as(x)

    def accumulate(self, y: Tensor, flat: Tensor) -> Tensor:
        weights, chosen = self.choose(flat)
        for number, expert in enumerate(self.experts):
            gate = (weights * (chosen == number)).sum(-1)
            tokens = gate.topk(3).indices
            added = expert(flat[tokens]) * gate[tokens, None]
            y = WAYS[self.how](y, tokens, added)
        return y


def _scatter_add_in_place(y: Tensor, tokens: Tensor, added: Tensor) -> Tensor:
    return y.scatter_add_(0, tokens[:, None].expand_as(added), added)


def _at_indices(y: Tensor, tokens: Tensor, added: Tensor) -> Tensor:
    y[tokens] += added
    return y


WAYS = {
    "index_add": lambda y, tokens, added: y.index_add(0, tokens, added),
    "index_add_": lambda y, tokens, added: y.index_add_(0, tokens, added),
    "scatter_add": lambda y, tokens, added: y.scatter_add(0, tokens[:, None].expand_as(added), added),
    "scatter_add_": _scatter_add_in_place,
    "index_put": lambda y, tokens, added: y.index_put((tokens,), added, accumulate=True),
    "index_put_": lambda y, tokens, added: y.index_put_((tokens,), added, accumulate=True),
    "scatter_reduce": lambda y, tokens, added: y.scatter_reduce(0, tokens[:, None].expand_as(added), added, "sum"),
    "at_indices": _at_indices,
}


@pytest.mark.parametrize("how", WAYS)
def test_what_is_added_into_the_shared_experts_leaves_these_a_term(how: str) -> None:
    style = type("Style", (IntoShared,), {"how": how})
    report = assert_is_the_form_by_hand(Decoder(style))
    assert "s0" in report.terms
    assert all(name[0] in ("r",) for name in report.left_out["attention.1"])


class Alone(IntoShared):
    """The same into zeros."""

    has_shared = False

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        return self.accumulate(torch.zeros_like(flat), flat).view_as(x)


@pytest.mark.parametrize("how", WAYS)
def test_experts_that_are_added_into_zeros(how: str) -> None:
    report = assert_is_the_form_by_hand(Decoder(type("Style", (Alone,), {"how": how})))
    assert report.terms == ("e", "a0", "r0", "a1", "r1", "a2", "r2")


class ZerosLikeShared(Alone):
    """Zeros of the shape of the shared output, which is added afterwards: it is not read for them."""

    has_shared = True
    how = "index_add"

    def forward(self, x: Tensor) -> Tensor:
        assert self.shared is not None
        flat = x.flatten(0, 1)
        shared = self.shared(flat)
        return (self.accumulate(torch.zeros_like(shared), flat) + shared).view_as(x)


def test_zeros_like_the_shared_output_do_not_read_it() -> None:
    assert "s1" in assert_is_the_form_by_hand(Decoder(ZerosLikeShared)).terms


class Loop(Experts):
    """The commonest loop: the tokens of each expert are looked up."""

    has_shared = False

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        weights, chosen = self.choose(flat)
        y = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            tokens, place = torch.where(chosen == number)
            y[tokens] += weights[tokens, place, None] * expert(flat[tokens])
        return y.view_as(x)


class LoopBehindAnAdapter(Loop):
    """What the experts give is projected, and an adapter of the projection is added."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, WIDTH, bias=False)
        self.a, self.b = nn.Linear(WIDTH, 2, bias=False), nn.Linear(2, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        latent = super().forward(x)
        return self.up(latent) + self.b(self.a(latent))


def test_a_projection_of_what_experts_give_is_one_term_with_its_adapter() -> None:
    report = assert_is_the_form_by_hand(Decoder(LoopBehindAnAdapter))
    assert report.terms == ("e", "a0", "r0", "a1", "r1", "a2", "r2")


class LoopIntoShared(Loop):
    """The same, into what the shared experts have filled."""

    has_shared = True

    def forward(self, x: Tensor) -> Tensor:
        assert self.shared is not None
        flat = x.flatten(0, 1)
        weights, chosen = self.choose(flat)
        y = self.shared(flat)
        for number, expert in enumerate(self.experts):
            tokens, place = torch.where(chosen == number)
            y[tokens] += weights[tokens, place, None] * expert(flat[tokens])
        return y.view_as(x)


@pytest.mark.parametrize("style", [Loop, LoopIntoShared])
def test_a_loop_over_experts_that_looks_its_tokens_up(style: type[Experts]) -> None:
    assert_is_the_form_by_hand(Decoder(style))


class Masks(Experts):
    """GShard: products with one-hot masks, and a module for each expert."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.shared is not None
        weights, chosen = self.choose(x)
        combine = (F.one_hot(chosen, EXPERTS).to(x.dtype) * weights.unsqueeze(-1)).sum(2)
        y = torch.stack([expert(x) for expert in self.experts], 2)
        return torch.einsum("bse,bsed->bsd", combine, y) + self.shared(x)


def test_masks_with_a_module_for_each_expert() -> None:
    assert "s1" in assert_is_the_form_by_hand(Decoder(Masks)).terms
