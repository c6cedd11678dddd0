# SPDX-License-Identifier: Apache-2.0
"""Small models to plant faults in, each with what some faults need: caches, masks, multipliers, reductions, dropout.

A `Base` is a model and the inputs of one call. Those with a form written by hand have an oracle too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
import torch.nn.functional as F
from torch import nn

from tests.graphs import EXPERTS, TOP_K, WIDTH, Attention, Dense, Experts, Layer, MoE, Stack, ids

LAYERS = 3
SLOTS = 7


@dataclass(frozen=True)
class Base:
    """A model, made anew for each call of `make`, and its inputs."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[torch.Tensor, ...]] = lambda: (ids(),)
    by_hand: Callable[[], nn.Module] | None = None
    """Its full FarSkip form."""
    training: bool = False
    reduces: bool = False
    """Its collectives need a process group; `simulated` runs it."""


class Returns(Stack):
    """Returns the final hidden state beside the logits."""

    def forward(self, ids):
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)), x


class Middle(Stack):
    """Returns a hidden state from the middle of the stack too, as a second head or a probe would read it."""

    def forward(self, ids):
        x = self.embedding(ids)
        middle = torch.empty(0)
        for index, layer in enumerate(self.layers):
            x = layer(x)
            middle = torch.tanh(x) if index == 0 else middle
        return self.head(self.norm(x)), middle


class Scaled(Layer):
    """Granite's multiplier on everything that is added."""

    def forward(self, x):
        x = x + 0.22 * self.attention(self.norm1(x))
        return x + 0.22 * self.feed_forward(self.norm2(x))


class Rounded(Layer):
    """The stream is kept in lower precision."""

    def forward(self, x):
        x = (x + self.attention(self.norm1(x))).float().double()
        return (x + self.feed_forward(self.norm2(x))).float().double()


class Difference(MoE):
    """Shared experts are taken away from the routed ones."""

    def forward(self, h):
        return self.routed(h) - self.shared(h)


class SharedFirst(MoE):
    """Computes its shared experts in front of the routed ones."""

    def forward(self, h):
        return self.shared(h) + self.routed(h)


class Parallel(Layer):
    """One norm for both sub-blocks."""

    def forward(self, x):
        h = self.norm1(x)
        return x + self.attention(h) + (self.feed_forward.routed(h) + self.feed_forward.shared(h))


class ParallelMoEFirst(Layer):
    """A parallel block that adds its experts before its attention."""

    def forward(self, x):
        h, g = self.norm1(x), self.norm2(x)
        return x + (self.feed_forward.routed(h) + self.feed_forward.shared(h)) + self.attention(g)


class ByHandParallelMoEFirst(Stack):
    def forward(self, ids):
        x = n = self.embedding(ids)
        for layer in self.layers:
            h = layer.norm1(x)
            r, s, a = (layer.feed_forward.routed(h), layer.feed_forward.shared(h), layer.attention(layer.norm2(n)))
            n = x + s + a
            x = x + (r + s) + a
        return self.head(self.norm(x))


class ByHand(Stack):
    """The full FarSkip form of a stack of plain layers."""

    def forward(self, ids):
        x = n = self.embedding(ids)
        for layer in self.layers:
            a, h = layer.attention(layer.norm1(n)), layer.norm2(x)
            if isinstance(layer.feed_forward, MoE):
                r, s = layer.feed_forward.routed(h), layer.feed_forward.shared(h)
                n = x + a + s
                x = x + a + (r + s)
            else:
                x = n = x + a + layer.feed_forward(h)
        return self.head(self.norm(x))


class AddsInPlace(MoE):
    """Llama-4's way to add its experts."""

    def forward(self, h):
        out = self.shared(h)
        out.add_(self.routed(h))
        return out


class Drops(Layer):
    def forward(self, x):
        x = x + F.dropout(self.attention(self.norm1(x)), 0.3, self.training)
        return (
            x
            + F.dropout(self.feed_forward.routed(h := self.norm2(x)), 0.3, self.training)
            + (self.feed_forward.shared(h))
        )


class CachedAttention(Attention):
    """Keys and values of earlier tokens, a mask and positions, as in a step of decoding."""

    def forward(self, h, keys, values, slots, mask, turn):
        keys.index_copy_(1, slots, self.k(h) * turn)
        values.index_copy_(1, slots, self.v(h))
        scores = (self.q(h) * turn) @ keys.transpose(-1, -2) * 0.5 + mask
        return self.o(scores.softmax(-1) @ values)


class BiasedExperts(Experts):
    """DeepSeek-V3's router: a bias decides who is chosen, a factor scales what comes out, and load is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bias", torch.linspace(-0.4, 0.4, EXPERTS))
        self.register_buffer("load", torch.zeros(EXPERTS))

    def forward(self, h, logits=None):
        flat = h.reshape(-1, h.shape[-1])
        scores = self.router(flat).sigmoid()
        chosen = (scores + self.bias).topk(TOP_K, dim=-1)[1]
        self.load.add_(F.one_hot(chosen, EXPERTS).to(self.load.dtype).sum((0, 1)))
        picked = torch.einsum("nd,nkde->nke", flat, self.stacked[chosen])
        return (picked * scores.gather(1, chosen).unsqueeze(-1)).sum(1).view(h.shape) * 2.5


class DecodingMoE(MoE):
    def __init__(self) -> None:
        super().__init__()
        self.routed = BiasedExperts()


class Decoding(Stack):
    """A step with caches: what it reads and writes beside the residual stream."""

    def forward(self, ids, keys, values, slots, masks, turns):
        x = self.embedding(ids)
        for index, layer in enumerate(self.layers):
            h = layer.norm1(x)
            x = x + layer.attention(h, keys[index], values[index], slots, masks[index], turns[index])
            x = x + layer.feed_forward(layer.norm2(x))
        return self.head(self.norm(x))


def decoding_layer() -> Layer:
    layer = Layer(DecodingMoE())
    layer.attention = CachedAttention()
    return layer


def decoding_inputs() -> tuple[torch.Tensor, ...]:
    tokens = ids()
    batch, length = tokens.shape
    generator = torch.Generator().manual_seed(1)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    caches = some(2, LAYERS, batch, SLOTS, WIDTH)
    return (
        tokens,
        caches[0].clone(),
        caches[1].clone(),
        torch.arange(length) + 1,
        some(LAYERS, length, SLOTS),
        some(LAYERS, length, WIDTH),
    )


class Reduces(Layer):
    """Tensor parallelism: attention, with a bias, and MoE end in one reduction each."""

    def __init__(self, feed_forward: nn.Module) -> None:
        super().__init__(feed_forward)
        self.bias = nn.Parameter(torch.linspace(-1.0, 1.0, WIDTH))

    def forward(self, x):
        x = x + funcol.all_reduce(self.attention(self.norm1(x)) + self.bias, "sum", dist.group.WORLD)
        return x + funcol.all_reduce(self.feed_forward(self.norm2(x)), "sum", dist.group.WORLD)


class ReducesBias(Reduces):
    """The bias is in the reduction of the experts."""

    def forward(self, x):
        x = x + funcol.all_reduce(self.attention(self.norm1(x)), "sum", dist.group.WORLD)
        return x + funcol.all_reduce(self.feed_forward(self.norm2(x)) + self.bias, "sum", dist.group.WORLD)


def stack(layer: Callable[[], nn.Module], kind: type[Stack] = Stack, layers: int = LAYERS) -> Callable[[], nn.Module]:
    return lambda: kind(layer, layers)


def alternating(first: Callable[[], nn.Module], then: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Makes the first layer with `first`, the others with `then`; to be made anew for each model."""
    made: list[Any] = []

    def make() -> nn.Module:
        made.append(None)
        return first() if len(made) % LAYERS == 1 else then()

    return make


PLAIN = Base(stack(lambda: Layer(MoE())), by_hand=stack(lambda: Layer(MoE()), ByHand))
TRAINING = Base(stack(lambda: Drops(MoE())), training=True)
RETURNS = Base(stack(lambda: Layer(MoE()), Returns))
MIDDLE = Base(stack(lambda: Layer(MoE()), Middle))
SCALED = Base(stack(lambda: Scaled(MoE())))
ROUNDED = Base(stack(lambda: Rounded(MoE())))
SIGNED = Base(stack(lambda: Layer(Difference())))
PARALLEL = Base(stack(lambda: Parallel(MoE())))
MOE_FIRST = Base(
    stack(lambda: ParallelMoEFirst(MoE())), by_hand=stack(lambda: ParallelMoEFirst(MoE()), ByHandParallelMoEFirst)
)
DENSE_FIRST = Base(
    stack(alternating(lambda: Layer(Dense()), lambda: Layer(MoE()))),
    by_hand=stack(alternating(lambda: Layer(Dense()), lambda: Layer(MoE())), ByHand),
)
IN_PLACE = Base(
    stack(alternating(lambda: Layer(AddsInPlace()), lambda: Layer(MoE()))),
    by_hand=stack(alternating(lambda: Layer(AddsInPlace()), lambda: Layer(MoE())), ByHand),
)
DECODING = Base(stack(decoding_layer, Decoding), decoding_inputs)
REDUCING = Base(stack(lambda: Reduces(MoE())), reduces=True)
BIASED = Base(stack(lambda: ReducesBias(MoE())), reduces=True)
SHARED_FIRST = Base(stack(lambda: Reduces(SharedFirst())), reduces=True)

BASES = {name.lower(): value for name, value in list(globals().items()) if isinstance(value, Base)}
