# SPDX-License-Identifier: Apache-2.0
"""Routed experts are seen wherever they are, behind whatever mixes rows; decisions that are no routers are let be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from farskip_compile import Outcome
from farskip_compile.errors import UnsupportedPatternError
from tests.verify import nets
from tests.verify.nets import EXPERTS, WIDTH, Attention, Net, inputs
from tests.verify.test_account import refusal_of, report_of

FRAMES = 9
"""Another length than that of the text."""


class PickedTokens(nn.Module):
    """Each expert takes its tokens by a boolean mask and adds what it makes to their places."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.experts = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS)])

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        weights, chosen = self.router(flat).softmax(-1).topk(2, -1)
        y = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == number)
            y.index_add_(0, token, expert(flat[token]) * weights[token, slot, None])
        return y.view_as(x)


class StackedWeights(nn.Module):
    """Each token takes the weights of its best expert."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.weight = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        gate, chosen = self.router(x).softmax(-1).max(-1, keepdim=True)
        return (x.unsqueeze(-2) @ self.weight[chosen.squeeze(-1)]).squeeze(-2) * gate


class WithShared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared, self.routed = nn.Linear(WIDTH, WIDTH), nets.Experts(nets.top_2)

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(x) + self.routed(x)


class PrunedTokens(nn.Module):
    """Dense: goes on with the tokens that a scorer wants most, as towers for images do."""

    def __init__(self) -> None:
        super().__init__()
        self.scorer, self.mlp = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.scorer(x).squeeze(-1).topk(4, -1).indices.sort(-1).values
        x = x.gather(1, kept.unsqueeze(-1).expand(-1, -1, WIDTH))
        return x + self.mlp(x)


class Codebook(nn.Module):
    """Dense: each token becomes the nearest of a few codes, with the gradient of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.codes, self.out = nn.Parameter(torch.randn(8, WIDTH)), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        near = (x.unsqueeze(-2) - self.codes).pow(2).sum(-1).argmin(-1)
        x = x + (self.codes[near] - x).detach()
        return x + self.out(x)


class Windows(nn.Module):
    """Dense: attention in windows that an index makes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.mlp = Attention(), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        order = torch.arange(FRAMES).view(3, 3).mT.flatten()
        x = x[:, order]
        x = x + self.inner(x)
        return (x + self.mlp(x))[:, order.argsort()]


class SparseKeys(nn.Module):
    """Dense: each token attends to the keys that an indexer wants most."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.index = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        best = (self.index(x) @ x.mT).topk(3, -1).indices
        batch = torch.arange(x.shape[0])[:, None, None]
        weights = (q.unsqueeze(-2) * k[batch, best]).sum(-1).softmax(-1)
        return x + (weights.unsqueeze(-1) * v[batch, best]).sum(-2)


ROUTED: dict[str, Callable[[], nn.Module]] = {
    "masks": lambda: nets.Experts(nets.top_2),
    "threshold": lambda: nets.Experts(nets.over_threshold),
    "picked tokens": PickedTokens,
    "stacked weights": StackedWeights,
    "experts choose": nets.ExpertsChoose,
    "shared": WithShared,
}
DENSE: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Linear(WIDTH, WIDTH),
    "pruned": PrunedTokens,
    "codebook": Codebook,
    "windows": Windows,
    "sparse keys": SparseKeys,
}


class Tower(nn.Module):
    """A layer of attention, then `part`, on frames of features."""

    def __init__(self, part: nn.Module, *, adds: bool, parallel: bool = False) -> None:
        super().__init__()
        self.begin, self.attention, self.part = nn.Linear(5, WIDTH), Attention(), part
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(3)])
        self.adds, self.parallel = adds, parallel

    def forward(self, x: Tensor) -> Tensor:
        x = self.begin(x)
        attended = x + self.attention(self.norms[0](x))
        y = self.part(self.norms[1](x if self.parallel else attended))
        return self.norms[2](attended + y if self.adds else y)


class WithTower(Net):
    """A decoder, and a tower in front of it, beside it, or behind it."""

    def __init__(self, tower: Tower, where: str) -> None:
        super().__init__(2)
        self.tower, self.where, self.cross = tower, where, Attention()
        self.back = nn.Linear(WIDTH, 5)

    def forward(self, ids: Tensor, frames: Tensor) -> Tensor:
        h = self.embed(ids)
        if self.where == "in front":
            h = torch.cat([self.tower(frames), h], 1)
        for number in range(2):
            h = self.layer(number, h)
            if self.where == "beside" and number == 0:
                memory = self.tower(frames)
                q = self.cross.qkv(h)[..., :WIDTH]
                h = h + self.cross.out(nn.functional.scaled_dot_product_attention(q, memory, memory))
        h = self.norms[-1](h)
        if self.where == "behind":
            h = self.tower(self.back(torch.cat([h, h[:, :3]], 1)))
        return self.head(h)


def frames() -> Tensor:
    return torch.randn(2, FRAMES, 5)


@pytest.fixture(autouse=True)
def _captured() -> object:
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        yield


@pytest.mark.parametrize("where", ["in front", "beside", "behind"])
@pytest.mark.parametrize("how", ROUTED)
def test_experts_behind_an_attention_are_seen_wherever_they_are(how: str, where: str) -> None:
    error = refusal_of(WithTower(Tower(ROUTED[how](), adds=True), where), inputs(), frames())
    assert isinstance(error, UnsupportedPatternError)
    # what is cut out of the stream's own rows may be named first
    assert "a second stack with routed experts" in error.reason or "a layer with other rows" in error.reason, error


def test_experts_of_a_parallel_block_are_seen() -> None:
    tower = Tower(nets.Experts(nets.top_2), adds=True, parallel=True)
    assert "a second stack" in refusal_of(WithTower(tower, "beside"), inputs(), frames()).reason


@pytest.mark.parametrize("where", ["in front", "beside", "behind"])
@pytest.mark.parametrize("how", DENSE)
def test_decisions_of_a_dense_tower_are_let_be(how: str, where: str) -> None:
    tower = Tower(DENSE[how](), adds=how == "plain")
    assert report_of(WithTower(tower, where), inputs(), frames()).outcome is Outcome.REWIRED
