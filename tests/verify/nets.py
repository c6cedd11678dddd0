# SPDX-License-Identifier: Apache-2.0
"""Small MoE models written as others write them: one layer of a plain stack in another form.

Contract: `Net(layers, ...)` is a decoder of attention, then experts, with plain residual adds. `add`, `mixers`,
`experts` and `wrap` change what stands in the layers that they name. No model shares code with what detects it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HIDDEN, EXPERTS, VOCABULARY, TOKENS = 16, 32, 4, 20, 6


class Attention(nn.Module):
    """Two heads, causal."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Experts(nn.Module):
    """All experts on all tokens, and gates of which most are 0."""

    def __init__(self, gates: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, HIDDEN) * 0.2)
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH) * 0.2)
        self.gates = gates

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.silu(torch.einsum("bsd,edf->bsef", x, self.up))
        return (torch.einsum("bsef,efd->bsed", hidden, self.down) * self.gates(self.router(x)).unsqueeze(-1)).sum(2)


def top_2(logits: Tensor) -> Tensor:
    weights, chosen = logits.softmax(-1).topk(2, -1)
    return torch.zeros_like(logits).scatter(-1, chosen, weights)


def over_threshold(logits: Tensor) -> Tensor:
    weights = logits.softmax(-1)
    return weights * (weights > 0.25)


def largest(logits: Tensor) -> Tensor:
    weights = logits.softmax(-1)
    return weights * (weights == weights.amax(-1, keepdim=True))


def gumbel(logits: Tensor) -> Tensor:
    return F.gumbel_softmax(logits, hard=True)


def top_p(logits: Tensor) -> Tensor:
    weights, order = logits.softmax(-1).sort(-1, descending=True)
    kept = weights * (weights.cumsum(-1) - weights < 0.7)
    return torch.zeros_like(logits).scatter(-1, order, kept)


class SoftExperts(nn.Module):
    """Soft MoE: slots that mix all tokens, an expert for each, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = nn.Parameter(torch.randn(WIDTH, 8))
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        scores = x @ self.slots
        mixed = scores.softmax(1).transpose(1, 2) @ x
        return scores.softmax(-1) @ self.down(F.silu(self.up(mixed)))


class ExpertsChoose(nn.Module):
    """Each expert takes the tokens that want it most, and changes them before it works on them."""

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda taken: taken) -> None:
        super().__init__()
        self.change = change
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, HIDDEN) * 0.2)
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        weights, tokens = self.router(x).softmax(-1).transpose(1, 2).topk(3, -1)
        index = tokens.flatten(1).unsqueeze(-1).expand(-1, -1, WIDTH)
        taken = x.gather(1, index).unflatten(1, (EXPERTS, 3))
        hidden = F.silu(torch.einsum("becd,edf->becf", self.change(taken), self.up))
        y = torch.einsum("becf,efd->becd", hidden, self.down) * weights.unsqueeze(-1)
        return torch.zeros_like(x).scatter_add(1, index, y.flatten(1, 2))


Change = Callable[[Tensor], Tensor]
CHANGES: dict[str, Change] = {
    "attended": lambda x: x @ x.mT @ x,
    "alike": lambda x: x * (x @ x.mT).sum(-1, keepdim=True),
    "softmax": lambda x: x * x.softmax(-2),
    "largest": lambda x: x.topk(3, -2).values,
    "cumsum": lambda x: x.cumsum(-2),
    "roll": lambda x: x + x.roll(1, -2),
    "fourier": lambda x: torch.fft.fft(x, dim=-2).real,
    "slots": lambda x: F.linear(x.mT, torch.full((3, 3), 0.2)).mT,
    "mean": lambda x: x - x.mean(-2, keepdim=True),
    "first": lambda x: x + x[0, 0, 0],
    "sum": lambda x: x * x.sum((1, 2, 3), keepdim=True).sigmoid(),
    "norm": lambda x: F.layer_norm(x, x.shape[-2:]),
    "features": lambda x: x.mT.reshape(x.shape),
    "flat": lambda x: x.flatten(0, 2).view(-1, 6, WIDTH).cumprod(1).view(x.shape),
}
"""What mixes tokens that experts have taken, `(batch, experts, slots, width)`."""


class Mixer(nn.Module):
    """Mixes tokens in a way that no detection knows."""

    def __init__(self, mix: Callable[[Mixer, Tensor], Tensor], tokens: int = TOKENS) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.tokens = nn.Linear(tokens, tokens)
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self, x)


def fourier(mixer: Mixer, x: Tensor) -> Tensor:
    return mixer.inner(torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real)


def pool(mixer: Mixer, x: Tensor) -> Tensor:
    return mixer.inner(F.avg_pool1d(x.transpose(1, 2), 3, 1, 1).transpose(1, 2) - x)


def token_mlp(mixer: Mixer, x: Tensor) -> Tensor:
    return mixer.inner(mixer.tokens(x.transpose(1, 2)).transpose(1, 2))


def shift(mixer: Mixer, x: Tensor) -> Tensor:
    return mixer.inner(F.pad(x[:, :-1], (0, 0, 1, 0)))


def recurrence(mixer: Mixer, x: Tensor) -> Tensor:
    state, states = torch.zeros_like(x[:, 0]), []
    for token in range(x.shape[1]):
        state = 0.9 * state + mixer.inner(x[:, token])
        states.append(state)
    return torch.stack(states, 1)


def gated_tokens(mixer: Mixer, x: Tensor) -> Tensor:
    """gMLP: half of the features gates the other half, after a product along the tokens."""
    kept, gate = mixer.inner(x).chunk(2, -1)
    gated = kept * mixer.tokens(gate.transpose(1, 2)).transpose(1, 2)
    return torch.cat([gated, gated], -1)


def running_mean(mixer: Mixer, x: Tensor) -> Tensor:
    return mixer.inner(x - x.mean(1, keepdim=True))


def signs(mixer: Mixer, x: Tensor) -> Tensor:
    """What was decided about the tokens before."""
    return mixer.inner((x.roll(1, 1) > 0).to(x.dtype))


def count(mixer: Mixer, x: Tensor) -> Tensor:
    """Scaled by how many entries of all tokens are positive."""
    return mixer.inner(x) * torch.nonzero(x > 0).shape[0]


Add = Callable[[Tensor, Tensor], Tensor]
ADDS: dict[str, Add] = {
    "lerp": lambda h, y: torch.lerp(h, y, 0.5),
    "addcmul": lambda h, y: torch.addcmul(h, y, torch.full_like(y, 0.5)),
    "alpha": lambda h, y: torch.add(h, y, alpha=0.5),
    "stack": lambda h, y: torch.stack([h, y]).sum(0),
}
MIXERS: dict[str, Callable[[Mixer, Tensor], Tensor]] = {
    "fourier": fourier,
    "pool": pool,
    "token_mlp": token_mlp,
    "shift": shift,
    "recurrence": recurrence,
    "gated_tokens": gated_tokens,
    "running_mean": running_mean,
    "signs": signs,
}
SELECTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "threshold": over_threshold,
    "largest": largest,
    "gumbel": gumbel,
}


def plain(h: Tensor, y: Tensor) -> Tensor:
    return h + y


class Net(nn.Module):
    """See the module's contract."""

    def __init__(
        self,
        layers: int = 3,
        *,
        add: Mapping[int, Add] | None = None,
        mixers: Mapping[int, nn.Module] | None = None,
        experts: Mapping[int, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.mixers = nn.ModuleList([(mixers or {}).get(layer) or Attention() for layer in range(layers)])
        self.experts = nn.ModuleList([(experts or {}).get(layer) or Experts(top_2) for layer in range(layers)])
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(2 * layers + 1)])
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.add = add or {}

    def layer(self, number: int, h: Tensor) -> Tensor:
        add = self.add.get(number, plain)
        h = add(h, self.mixers[number](self.norms[2 * number](h)))
        return add(h, self.experts[number](self.norms[2 * number + 1](h)))

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        for number in range(len(self.mixers)):
            h = self.layer(number, h)
        return self.head(self.norms[-1](h))


class NetWithCond(Net):
    """One layer inside `torch.cond`."""

    def __init__(self, where: int) -> None:
        super().__init__(3)
        self.where = where

    def layer(self, number: int, h: Tensor) -> Tensor:
        if number != self.where:
            return super().layer(number, h)
        return torch.cond(h.sum() > 0, lambda x: super(NetWithCond, self).layer(number, x), lambda x: x + 1.0, [h])


def inputs() -> Tensor:
    """Token ids of two sequences."""
    return torch.arange(2 * TOKENS).view(2, TOKENS) % VOCABULARY
