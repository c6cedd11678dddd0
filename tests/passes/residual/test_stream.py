# SPDX-License-Identifier: Apache-2.0
"""The residual sum: what is found as a sum, and what is refused because it is none."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from farskip_compile.errors import FarSkipError, NotASumError, UnsupportedPatternError
from farskip_compile.passes.graph import ops
from farskip_compile.passes.normalize import normalize
from farskip_compile.passes.residual import read_table
from farskip_compile.passes.residual.sums import read_dataflow
from tests.graphs import WIDTH, Attention, Dense, Layer, MoE, Stack, dynamo, ids, reading_of, reads, table_of

STANDARD = {"attention.0": "e", "moe.0": "e a0", "attention.1": "e a0 r0 s0", "moe.1": "e a0 r0 s0 a1"}


def stack(layer, feed_forward=MoE, layers=2) -> Stack:
    return Stack(lambda: layer(feed_forward()), layers)


class BranchFirst(Layer):
    def forward(self, x):
        x = self.attention(self.norm1(x)) + x
        return self.feed_forward(self.norm2(x)) + x


class Granite(Layer):
    def forward(self, x):
        x = x + self.attention(self.norm1(x)) * 0.22
        return x + 0.22 * self.feed_forward(self.norm2(x))


class ScaledBothSides(Layer):
    """Every residual of muse and beam: learned coefficients on the stream and on the branch."""

    def __init__(self, feed_forward):
        super().__init__(feed_forward)
        self.alpha, self.beta = nn.Parameter(torch.tensor(0.9)), nn.Parameter(torch.full((WIDTH,), 0.3))

    def forward(self, x):
        x = self.alpha.sqrt() * x + torch.sigmoid(self.beta) * self.attention(self.norm1(x))
        return x * self.alpha + self.feed_forward(self.norm2(x)) / 2


class Shifted(Layer):
    """Zaya: learned vectors are added to the stream and to the branch, and scale both."""

    def __init__(self, feed_forward):
        super().__init__(feed_forward)
        self.scale, self.shift = nn.Parameter(torch.full((WIDTH,), 0.8)), nn.Parameter(torch.full((WIDTH,), 0.3))

    def forward(self, x):
        x = (self.attention(self.norm1(x)) + self.shift) * self.scale + (x + self.shift) * self.scale
        return (self.feed_forward(self.norm2(x)) + self.shift) + (self.shift + x) * self.scale


class FinishedSumScaled(Layer):
    """Gemma 4: `hidden *= layer_scalar`, in place."""

    def __init__(self, feed_forward):
        super().__init__(feed_forward)
        self.register_buffer("scalar", torch.tensor(0.7))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        x = x + self.feed_forward(self.norm2(x))
        x *= self.scalar
        return x


class HalfPrecisionBranch(Layer):
    def forward(self, x):
        x = x + self.attention(self.norm1(x)).to(torch.bfloat16)
        return (x.float() + self.feed_forward(self.norm2(x))).to(torch.float64)


class InPlace(Layer):
    def forward(self, x):
        x += self.attention(self.norm1(x))
        x.view(-1, WIDTH).add_(self.feed_forward(self.norm2(x)).view(-1, WIDTH))
        return x


@pytest.mark.parametrize(
    "layer", [Layer, BranchFirst, Granite, ScaledBothSides, Shifted, FinishedSumScaled, HalfPrecisionBranch, InPlace]
)
def test_standard_wiring_in_many_forms(layer):
    assert reads(table_of(stack(layer))) == STANDARD


def test_one_layer_beside_a_rotation_as_wide_as_the_stream():
    """The only residual sums are as small as the rotation's."""

    class Rotated(Attention):
        def forward(self, h):
            table = torch.arange(float(WIDTH), dtype=h.dtype)
            return super().forward(h * table.cos() + h.roll(1, -1) * table.sin())

    class Only(Layer):
        def __init__(self, feed_forward):
            super().__init__(feed_forward)
            self.attention = Rotated()

        def forward(self, x):
            return x + self.attention(self.norm1(x))

    assert reads(table_of(stack(Only, layers=1))) == {"attention.0": "e"}


class Unrolled(nn.Module):
    def __init__(self, experts=12):
        super().__init__()
        self.experts = nn.ModuleList(Dense() for _ in range(experts))
        self.router = nn.Linear(WIDTH, experts, bias=False)

    def forward(self, h):
        weights, picked = self.router(h).softmax(-1).topk(2, -1)
        gates = torch.zeros_like(self.router(h)).scatter(-1, picked, weights)
        return sum(expert(h) * gates[..., i : i + 1] for i, expert in enumerate(self.experts))


class Sandwich(Layer):
    def __init__(self, feed_forward):
        super().__init__(feed_forward)
        self.post = nn.RMSNorm(WIDTH)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.post(self.feed_forward(self.norm2(x)))


def test_a_sum_of_experts_before_a_norm_is_larger_than_the_stream():
    table = table_of(stack(Sandwich, Unrolled))
    assert reads(table) == {"attention.0": "e", "moe.0": "e a0", "attention.1": "e a0 r0", "moe.1": "e a0 r0 a1"}


def test_a_recurrence_over_tokens_is_larger_than_the_stream():
    class Delta(Attention):
        def forward(self, h):
            q, k, v = self.q(h), self.k(h), self.v(h)
            state, outs = h.new_zeros(h.shape[0], WIDTH, WIDTH), []
            for t in range(h.shape[1]):
                value = v[:, t] - torch.einsum("bde,bd->be", state, k[:, t])
                state = state * 0.9 + k[:, t].unsqueeze(-1) * value.unsqueeze(-2)
                outs.append(torch.einsum("bde,bd->be", state, q[:, t]))
            return self.o(torch.stack(outs, 1))

    class Linear(Layer):
        def __init__(self, feed_forward):
            super().__init__(feed_forward)
            self.attention = Delta()

    table = table_of(stack(Linear), ids(1, 12))
    assert list(reads(table)) == ["mixer.0", "moe.0", "mixer.1", "moe.1"]


def test_a_loss_is_no_stream():
    module, _ = dynamo(lambda x, y: (x + y).square().mean() + x.sum(), torch.ones(2), torch.ones(2), edit=normalize)
    assert read_table(module.graph) is None


class Normed(Layer):
    """MiniMax: the skip is taken after the norm."""

    def forward(self, x):
        x = self.norm1(x)
        x = x + self.attention(x)
        x = self.norm2(x)
        return x + self.feed_forward(x)


class NormedOnce(Layer):
    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return self.norm2(x + self.feed_forward(x))


class Lerp(Layer):
    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return torch.lerp(x, self.feed_forward(self.norm2(x)), 0.5)


class Alpha(Layer):
    def forward(self, x):
        x = torch.add(x, self.attention(self.norm1(x)), alpha=0.5)
        return x + self.feed_forward(self.norm2(x))


class Projected(Layer):
    def __init__(self, feed_forward):
        super().__init__(feed_forward)
        self.mix = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x):
        return self.mix(super().forward(x))


class Twice(Layer):
    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        f = self.feed_forward(self.norm2(x))
        return (x + f) + f


class TwiceScaled(Layer):
    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        f = self.feed_forward.routed(self.norm2(x))
        return (x + 0.5 * f) + 0.25 * f


class Doubled(Layer):
    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return (x + x) + self.feed_forward(self.norm2(x))


class GatedByTheStream(Layer):
    """The gate is computed before what it scales, and depends on the stream all the same."""

    def forward(self, x):
        gate = torch.sigmoid(x.mean(-1, keepdim=True))
        return super().forward(x) * gate


class Squared(Layer):
    def forward(self, x):
        x = super().forward(x)
        return x * x


@pytest.mark.parametrize(
    "layer",
    [Normed, NormedOnce, Lerp, Alpha, Projected, Twice, TwiceScaled, Doubled, GatedByTheStream, Squared],
)
def test_what_is_no_sum_is_refused(layer):
    with pytest.raises(NotASumError):
        table_of(stack(layer, layers=3))


class Streams(nn.Module):
    """Hyper-connections: two streams, mixed by a matrix between sub-blocks."""

    def __init__(self, feed_forward, of_activations):
        super().__init__()
        self.layer, self.of_activations = Layer(feed_forward), of_activations
        self.mix, self.read = nn.Parameter(torch.eye(2) + 0.1), nn.Linear(WIDTH, 2)
        self.gate = nn.Linear(WIDTH, 4)

    def step(self, x, function, norm):
        weights = self.read(x.mean(0)).softmax(-1)
        y = function(norm(torch.einsum("nbtd,btn->btd", x, weights)))
        if self.of_activations:
            matrix = self.gate(x.mean(0)).unflatten(-1, (2, 2)).softmax(-1)
            return torch.einsum("btnm,mbtd->nbtd", matrix, x) + y
        return torch.einsum("nm,mbtd->nbtd", self.mix, x) + y

    def forward(self, x):
        x = self.step(x, self.layer.attention, self.layer.norm1)
        return self.step(x, self.layer.feed_forward, self.layer.norm2)


class ManyStreams(Stack):
    def forward(self, ids):
        x = self.embedding(ids)
        x = torch.stack([x, x])
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x.sum(0)))


@pytest.mark.parametrize("of_activations", [False, True])
def test_mixed_streams_have_no_table(of_activations):
    model = ManyStreams(lambda: Streams(MoE(), of_activations))
    module, _ = dynamo(model, ids(), edit=normalize)
    with contextlib.suppress(FarSkipError):  # refused, or not found: never a wrong table
        assert read_table(module.graph) is None


def test_a_slice_of_the_stream_written_in_place_is_refused():
    class Writes(Layer):
        def forward(self, x):
            x = x + self.attention(self.norm1(x))
            x[:, 0] = 0.0
            return x + self.feed_forward(self.norm2(x))

    with pytest.raises(UnsupportedPatternError, match="out-of-place"):
        table_of(stack(Writes))


def test_a_slice_written_after_an_in_place_add_is_refused():
    """All names of one memory count, also those that single assignment made."""

    class Writes(Layer):
        def forward(self, x):
            x += self.attention(self.norm1(x))
            x[:, 0] = 0.0
            x += self.feed_forward(self.norm2(x))
            return x

    with pytest.raises(UnsupportedPatternError, match="out-of-place"):
        table_of(stack(Writes))


def test_learned_positions_are_not_the_base():
    class Positioned(Stack):
        def __init__(self, make):
            super().__init__(make)
            self.positions = nn.Parameter(torch.zeros(2, 5, WIDTH, dtype=torch.float64))

        def forward(self, ids):
            x = self.positions + self.embedding(ids)
            for layer in self.layers:
                x = layer(x)
            return self.head(self.norm(x))

    reading = reading_of(Positioned(lambda: Layer(MoE())))
    assert ops.op_name(reading.stream.base) == "embedding"
    assert [row.name for row in reading.table.rows] == list(STANDARD)


def test_a_skip_from_the_embedding_is_a_reader_of_its_own():
    class Skips(Stack):
        def forward(self, ids):
            x = first = self.embedding(ids)
            for layer in self.layers:
                x = layer(x) + 0.1 * first
            return self.head(self.norm(x))

    rows = reads(table_of(Skips(lambda: Layer(MoE()))))
    assert rows == {
        "attention.0": "e",
        "moe.0": "e a0",
        "mlp.0": "e",
        "attention.1": "e a0 r0 s0 m0",
        "moe.1": "e a0 r0 s0 m0 a1",
        "mlp.1": "e",
    }


def test_random_numbers_are_no_constants_whatever_they_are_drawn_for():
    weight = nn.Parameter(torch.randn(WIDTH))
    module, _ = dynamo(lambda x: (x * (weight * 2), x * nn.functional.dropout(weight, 0.5, True)), torch.randn(WIDTH))
    flow = read_dataflow(module.graph)
    products = [node for node in module.graph.nodes if ops.op_name(node) in ("mul", "dropout")]
    assert [node in flow.constant for node in products] == [True, False, False, False]
