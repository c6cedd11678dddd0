# SPDX-License-Identifier: Apache-2.0
"""A decoder whose parts are given, and its FarSkip form written by hand.

Contract: `Decoder` is what a user compiles. `farskip_form` computes, with the same weights and in the same order of
additions, what connectivity "full" means (arXiv 2511.11505, eq. 8): attention reads the stream without the routed
experts of the layer before, the experts read it without the attention of their own layer. An `Experts` module says
itself, in `parts`, what its shared experts alone are; no other code of the package is used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from farskip_compile import CompileReport
from tests.compile_each import compile_each

WIDTH, HIDDEN, EXPERTS, HEADS, VOCABULARY, TOKENS = 16, 24, 4, 2, 20, 5


class MLP(nn.Module):
    """Two products."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.up(x)))


class Attention(nn.Module):
    """Two heads, causal."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def heads(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.heads(x))


class Experts(nn.Module):
    """Base class: a router, experts, and shared experts or none."""

    has_shared = True

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = nn.ModuleList([MLP() for _ in range(EXPERTS)])
        self.shared = MLP() if self.has_shared else None

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and indices of the two best experts."""
        return self.router(x).softmax(-1).topk(2, -1)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """All that it adds, and the shared experts alone."""
        return self(x), self.shared(x) if self.shared is not None else None


Add = Callable[[Tensor, Tensor], Tensor]


class Decoder(nn.Module):
    """Pre-norm layers of attention and experts; what is given as a list is given layer by layer."""

    def __init__(
        self,
        experts: Callable[[], nn.Module] | Sequence[Callable[[], nn.Module]],
        attention: Callable[[], nn.Module] | Sequence[Callable[[], nn.Module]] = Attention,
        add: Add | Sequence[Add] = lambda h, y: h + y,
        layers: int = 3,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.attentions = nn.ModuleList([one() for one in _for_each(attention, layers)])
        self.experts = nn.ModuleList([one() for one in _for_each(experts, layers)])
        self.before = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(layers)])
        self.between = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(layers)])
        self.last = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.adds = _for_each(add, layers)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        for attention, experts, before, between, add in zip(
            self.attentions, self.experts, self.before, self.between, self.adds, strict=True
        ):
            h = add(h, attention(before(h)))
            h = add(h, experts(between(h)))
        return self.head(self.last(h))


def _for_each(given: Any, layers: int) -> list[Any]:
    return list(given) if isinstance(given, Sequence) else [given] * layers


def farskip_form(model: Decoder, ids: Tensor) -> Tensor:
    """See the module's contract."""
    whole = model.embed(ids)
    early = whole
    for number, attention in enumerate(model.attentions):
        a = attention(model.before[number](early))
        x, s = model.experts[number].parts(model.between[number](whole))
        add = model.adds[number]
        with_attention = add(whole, a)
        early = with_attention if s is None else add(with_attention, s)
        whole = add(with_attention, x)
    return model.head(model.last(whole))


def token_ids() -> Tensor:
    """Two sequences."""
    return torch.arange(2 * TOKENS).view(2, TOKENS) % VOCABULARY


def assert_is_the_form_by_hand(model: Decoder) -> CompileReport:
    """Bit for bit, and the gradients of all parameters to 1e-12; under `none` it is the model as written."""
    model = model.double()  # captured once
    torch.compiler.reset()
    found: list[CompileReport] = []
    hand = copy.deepcopy(model)
    asked = [{"connectivity": "none"}, {"connectivity": "full", "on_report": found.append}]
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True):
        none, full = compile_each(model, [{"inner": "eager", **options} for options in asked])
        assert torch.equal(none(token_ids()), plain := model(token_ids()))
        ours = full(token_ids())
    expected = farskip_form(hand, token_ids())
    assert torch.equal(ours, expected), (ours - expected).abs().max()
    assert not torch.equal(ours, plain)
    ours.square().sum().backward()
    expected.square().sum().backward()
    for (name, one), other in zip(model.named_parameters(), hand.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None and other.grad is not None:
            assert (one.grad - other.grad).abs().max() <= 1e-12 * max(1.0, float(other.grad.abs().max())), name
    return found[-1]
