# SPDX-License-Identifier: Apache-2.0
"""Streams that are not a sum: the error says what takes the place of the stream, and in which line."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import nn

from farskip_compile.errors import NotASumError
from tests.graphs import WIDTH, Attention, Experts, Layer, Stack, ids


class Normed(Layer):
    """The skip connections begin after the norms."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm1(x)
        x = 0.5 * h + self.attention(h)
        h = self.norm2(x)  # the line
        return 0.5 * h + self.feed_forward(h)


class Projected(Layer):
    """The stream passes a linear layer before each sub-block."""

    def __init__(self, feed_forward: nn.Module) -> None:
        super().__init__(feed_forward)
        self.project = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        x = self.project(x)  # the line
        return x + self.feed_forward(self.norm2(x))


class HyperConnections(nn.Module):
    """Four streams that a product of activations mixes."""

    def __init__(self, feed_forward: nn.Module) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(), feed_forward
        self.mix, self.weigh = nn.Linear(WIDTH, 16, bias=False), nn.Linear(WIDTH, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.unsqueeze(-2).expand(*x.shape[:-1], 4, WIDTH) if x.dim() == 3 else x
        for block in (self.attention, self.feed_forward):
            h = x.mean(-2)
            comb = self.mix(h).unflatten(-1, (4, 4)).softmax(-1)
            x = self.weigh(h).unsqueeze(-1) * block(h).unsqueeze(-2) + torch.matmul(comb, x)  # the line
        return x


class MixedStack(Stack):
    """Which takes the mean of the streams in the end."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x.mean(-2)))


@pytest.mark.parametrize(
    ("stack", "layer", "reason"),
    [
        (Stack, Normed, "a normalised value"),
        (Stack, Projected, "a projection"),
        (MixedStack, HyperConnections, "a product that mixes residual streams"),
    ],
)
def test_the_line_that_stands_in_the_way(
    stack: Callable[..., nn.Module], layer: Callable[..., nn.Module], reason: str
) -> None:
    model = stack(lambda: layer(Experts()), layers=3)
    with pytest.raises(NotASumError, match=reason) as error:
        torch.compile(model, backend="farskip", fullgraph=True, options={"inner": "eager"})(ids())
    assert error.value.way_out
    lines, first = inspect.getsourcelines(layer)
    wanted = first + next(number for number, line in enumerate(lines) if "# the line" in line)
    assert f"test_not_a_sum.py:{wanted}" in str(error.value.where.source)
