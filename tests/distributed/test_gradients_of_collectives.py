# SPDX-License-Identifier: Apache-2.0
"""What docs/collectives.md says about gradients: eager and compiled differ where autograd does not see the call."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import nn

from tests.compare import relative_difference, run_with_gradients
from tests.compile_each import compile_each
from tests.distributed.ranks import run_ranks
from tests.economy import scalar_kernels
from tests.graphs import Layer, MoE, Stack, ids


class InPlace(Layer):
    """Tensor-parallel in the style of transformers: each sub-block's partial sum is reduced where it lies."""

    def reduced(self, out: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(out)
        return out

    def forward(self, x):
        x = x + self.reduced(self.attention(self.norm1(x)))
        return x + self.reduced(self.feed_forward(self.norm2(x)))


class Functional(InPlace):
    def reduced(self, out):
        return funcol.all_reduce(out, "sum", dist.group.WORLD)


class Identity(torch.autograd.Function):
    """All-reduce whose backward is the identity, said openly."""

    @staticmethod
    def forward(ctx, x):
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def in_place(x: torch.Tensor) -> torch.Tensor:
    y = x * 3
    dist.all_reduce(y)
    return y


def gathered(x: torch.Tensor) -> torch.Tensor:
    whole = x.new_empty(2 * len(x))
    dist.all_gather_into_tensor(whole, x * 3)
    return whole


def identity(x: torch.Tensor) -> torch.Tensor:
    return Identity.apply(x * 3)


def gradient(function: Callable[[torch.Tensor], torch.Tensor], rank: int) -> list[float]:
    """Of a loss with the weights 1, 2, ... on rank 0 and ten times as much on rank 1."""
    x = torch.ones(2, dtype=torch.float64, requires_grad=True)
    output = function(x)
    weights = torch.arange(1.0, 1.0 + len(output), dtype=torch.float64) * 10**rank
    (output * weights).sum().backward()
    return x.grad.tolist()


INNERS = ("eager", "aot_eager", "inductor")


def on_ranks(rank: int, world_size: int) -> None:
    own, everybody = 10**rank, 11
    assert gradient(in_place, rank) == [3 * own, 6 * own]  # eager: the gradient of this rank alone
    half = [[3, 6], [9, 12]][rank]  # the part of a gathered tensor that came from here
    for function, expected in (
        (in_place, [3 * everybody, 6 * everybody]),
        (identity, [3 * own, 6 * own]),
        (gathered, [value * everybody for value in half]),
    ):
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        assert gradient(compiled, rank) == expected, function
    assert gradient(identity, rank) == [3 * own, 6 * own]

    # the same through a whole model
    models = {style: Stack(lambda style=style: style(MoE())) for style in (InPlace, Functional)}
    tokens = (ids() + rank).remainder(11)
    eager, wanted = (run_with_gradients(models[style], models[style], tokens) for style in (InPlace, Functional))
    assert torch.equal(eager[0], wanted[0])
    assert worst(eager[1], wanted[1]) > 0.1
    torch._dynamo.reset()
    model: nn.Module = models[InPlace]
    options = [{"inner": inner, "connectivity": "none"} for inner in INNERS]
    runs = {"plain": torch.compile(model, backend="aot_eager", fullgraph=True)}
    runs |= zip(INNERS, compile_each(model, options), strict=True)
    for name, run in runs.items():
        with scalar_kernels():
            output, gradients = run_with_gradients(run, model, tokens)
        assert relative_difference(output, wanted[0]) < 1e-12, name
        assert worst(gradients, wanted[1]) < 1e-11, name


def worst(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(relative_difference(left[name], right[name]) for name in left)


def test_eager_and_compiled_gradients_of_in_place_collectives() -> None:
    run_ranks(on_ranks, 2, timeout=300)
