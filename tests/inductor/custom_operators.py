# SPDX-License-Identifier: Apache-2.0
"""Collectives by operators of a user, over functional ones, and a model whose experts exchange rows by them.

`by_hand` is its form in `full`, by the same modules.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

import farskip_compile
from farskip_compile import declare_op

WIDTH, VOCABULARY, LAYERS = 16, 20, 3
IDS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
C10D, FLOAT8 = torch.ops._c10d_functional, torch.float8_e4m3fn


@torch.library.custom_op("farskip_tests::send", mutates_args=())
def send(x: Tensor, ranks: str) -> Tensor:
    half = x.shape[0] // 2
    return C10D.all_to_all_single(x, [half, half], [half, half], ranks)


@torch.library.custom_op("farskip_tests::send_scaled", mutates_args=())
def send_scaled(x: Tensor, scales: Tensor, ranks: str) -> tuple[Tensor, Tensor]:
    return send(x, ranks), send(scales, ranks)


@torch.library.custom_op("farskip_tests::arrived", mutates_args=())
def arrived(x: Tensor) -> Tensor:
    return C10D.wait_tensor(x).clone()


@torch.library.custom_op("farskip_tests::swap", mutates_args=())
def swap(x: Tensor, ranks: str) -> Tensor:
    return arrived(send(x, ranks))


@torch.library.custom_op("farskip_tests::swap_somewhere", mutates_args=())
def swap_somewhere(x: Tensor) -> Tensor:
    """As those libraries do whose group is a handle elsewhere."""
    return arrived(send(x, dist.group.WORLD.group_name))  # type: ignore[union-attr]


for operator in (send, swap):
    operator.register_fake(lambda x, ranks: torch.empty_like(x))
for operator in (arrived, swap_somewhere):
    operator.register_fake(lambda x: torch.empty_like(x))
send_scaled.register_fake(lambda x, scales, ranks: (torch.empty_like(x), torch.empty_like(scales)))


def _sent_back(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    return arrived(send(gradient.contiguous(), ctx.ranks)), None


def _remember(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.ranks = inputs[1]


send.register_autograd(_sent_back, setup_context=_remember)
swap.register_autograd(_sent_back, setup_context=_remember)
arrived.register_autograd(lambda ctx, gradient: gradient)


def _all_to_all(x: Tensor, ranks: str) -> Tensor:
    half = x.shape[0] // 2
    return C10D.all_to_all_single(x, [half, half], [half, half], ranks)


class Layer(nn.Module):
    """Tokens are mixed; then experts of this and the other rank."""

    def __init__(self, how: str, ranks: str) -> None:
        super().__init__()
        self.how, self.ranks = how, ranks
        self.mix, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.router = nn.Linear(WIDTH, 4)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(x)[None, None].chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True)[0, 0])

    def exchange(self, x: Tensor) -> Tensor:
        if self.how == "in two":
            return arrived(send(x, self.ranks))
        if self.how == "in 8 bits":  # by PyTorch's own collectives
            scales = x.abs().amax(-1, keepdim=True) / 256
            rows, their_scales = (_all_to_all(one, self.ranks) for one in ((x / scales).to(FLOAT8), scales))
            return C10D.wait_tensor(rows).to(x.dtype) * C10D.wait_tensor(their_scales)
        if self.how == "with scales":
            scales = x.abs().amax(-1, keepdim=True)
            rows, their_scales = send_scaled(x / scales, scales, self.ranks)
            return arrived(rows) * arrived(their_scales)
        return swap(x, self.ranks) if self.how == "in one" else swap_somewhere(x)

    def experts(self, x: Tensor) -> Tensor:
        weight, chosen = self.router(x).softmax(-1).topk(1)
        rows = x[torch.argsort(chosen[:, 0], stable=True)]
        done = self.exchange(self.down(F.silu(self.up(self.exchange(rows)))))
        return done[torch.argsort(torch.argsort(chosen[:, 0], stable=True))] * weight


class Model(nn.Module):
    def __init__(self, how: str, ranks: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer(how, ranks) for _ in range(LAYERS))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2 * LAYERS + 1))
        self.embedding, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for number, layer in enumerate(self.layers):
            x = x + layer.attention(self.norms[2 * number](x))
            x = x + layer.experts(self.norms[2 * number + 1](x))
        return self.head(self.norms[-1](x))


def by_hand(model: Model, ids: Tensor) -> Tensor:
    """Attention reads the stream without the experts before it, and experts without the attention before them."""
    without_last = x = model.embedding(ids)
    for number, layer in enumerate(model.layers):
        attention = layer.attention(model.norms[2 * number](without_last))
        experts = layer.experts(model.norms[2 * number + 1](x))
        without_last = x + attention
        x = without_last + experts
    return model.head(model.norms[-1](x))


def declare_all() -> None:
    declare_op("farskip_tests::send", "exchange", wait="farskip_tests::arrived", group="ranks")
    declare_op("farskip_tests::send_scaled", "exchange", wait="farskip_tests::arrived", group="ranks")
    declare_op("farskip_tests::swap", "exchange", group="ranks")
    declare_op("farskip_tests::swap_somewhere", "exchange")


def compiled(model: nn.Module, **options: Any) -> Any:
    return torch.compile(model, backend=farskip_compile.backend(check_order=False, **options), fullgraph=True)
