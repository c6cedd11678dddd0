# SPDX-License-Identifier: Apache-2.0
"""Kinds are decided by dataflow alone: the same operators in another role must not fool them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from farskip_compile.errors import InseparableExpertsError, UnsupportedPatternError
from farskip_compile.passes.rewire.request import ask
from tests.graphs import EXPERTS, WIDTH, Attention, Dense, Experts, Layer, MoE, Stack, table_of


def kinds(attention=Attention, feed_forward=MoE, layer=Layer):
    """Kinds of the second layer's terms, in the order of the stream."""

    def make():
        made = layer(feed_forward())
        made.attention = attention()
        return made

    table = table_of(Stack(make))
    return [str(term.kind) for term in table.terms if term.layer == 1]


class Matmuls(Attention):
    def forward(self, h):
        scores = self.q(h) @ self.k(h).transpose(-1, -2) * 0.3
        return self.o(scores.softmax(-1) @ self.v(h))


class Sparse(Attention):
    """Each query keeps its two best keys: a top-k that routes nothing."""

    def forward(self, h):
        scores = torch.einsum("bqd,bkd->bqk", self.q(h), self.k(h))
        kept = scores.topk(2, dim=-1).indices
        mask = torch.full_like(scores, float("-inf")).scatter(-1, kept, 0.0)
        return self.o(F.scaled_dot_product_attention(self.q(h), self.k(h), self.v(h), attn_mask=mask))


class SparseGather(Attention):
    """Picks rows of keys and values by a top-k, as DeepSeek's indexer does."""

    def forward(self, h):
        index = (self.q(h) @ self.k(h).transpose(-1, -2)).topk(2, dim=-1).indices
        batch = torch.arange(h.shape[0])[:, None, None]
        k, v = self.k(h)[batch, index], self.v(h)[batch, index]
        weights = torch.einsum("bqd,bqkd->bqk", self.q(h), k).softmax(-1)
        return self.o(torch.einsum("bqk,bqkd->bqd", weights, v))


class Bank(Attention):
    """Attention heads with stacked projections."""

    def __init__(self):
        super().__init__()
        self.stacked = nn.Parameter(torch.randn(2, WIDTH, WIDTH) * 0.3)

    def forward(self, h):
        q, k, v = torch.einsum("btd,nde->nbte", h, self.stacked.repeat(2, 1, 1)[:3])
        return self.o(F.scaled_dot_product_attention(q, k, v))


class SparseBank(Sparse):
    """A top-k decides what meets a stacked weight, and still it is attention."""

    def __init__(self):
        super().__init__()
        self.stacked = nn.Parameter(torch.randn(2, WIDTH, WIDTH) * 0.3)

    def forward(self, h):
        return torch.einsum("btd,nde->bte", super().forward(h), self.stacked)


@pytest.mark.parametrize("attention", [Attention, Matmuls, Sparse, SparseGather, Bank, SparseBank])
def test_attention(attention):
    assert kinds(attention) == ["attention", "routed", "shared"]


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv1d(WIDTH, WIDTH, 3, padding=2, groups=WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, h):
        return self.out(self.conv(h.transpose(1, 2))[..., :-2].transpose(1, 2) * F.silu(h))


class Cumulative(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, h):
        return self.out(self.up(h).cumsum(1))


class LinearAttention(Attention):
    def forward(self, h):
        return self.o(self.q(h).relu() @ (self.k(h).relu().transpose(-1, -2) @ self.v(h)))


@pytest.mark.parametrize("mixer", [Convolution, Cumulative, LinearAttention])
def test_mixer(mixer):
    assert kinds(mixer) == ["mixer", "routed", "shared"]


class TopKActivation(Dense):
    """Keeps the largest hidden activations: a selection, but of no expert."""

    def forward(self, h):
        hidden = self.up(h)
        kept = hidden.topk(3, dim=-1)
        return self.down(torch.zeros_like(hidden).scatter(-1, kept.indices, kept.values))


class StackedDense(nn.Module):
    """A stacked weight that every token meets: shared experts of Inkling."""

    def __init__(self):
        super().__init__()
        self.up, self.down = (nn.Parameter(torch.randn(2, WIDTH, WIDTH)) for _ in range(2))

    def forward(self, h):
        return torch.einsum("nbtd,nde->bte", F.silu(torch.einsum("btd,nde->nbte", h, self.up)), self.down)


class SoftmaxGate(Dense):
    """A gate over features is not attention."""

    def forward(self, h):
        return self.down(self.up(h).softmax(-1) * h)


@pytest.mark.parametrize("dense", [Dense, TopKActivation, StackedDense, SoftmaxGate])
def test_dense(dense):
    class Both(nn.Module):
        """Beside routed experts that read something else, so that the model is a MoE."""

        def __init__(self):
            super().__init__()
            self.dense = dense()

        def forward(self, h):
            return self.dense(h)

    blocks = iter([MoE, Both])

    def make():
        return Layer(next(blocks)())

    table = table_of(Stack(make))
    assert [str(term.kind) for term in table.terms if term.layer == 1] == ["attention", "dense"]


class Unrolled(nn.Module):
    """A list of plain experts, each scaled by its gate (zero if not selected)."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = nn.ModuleList(Dense() for _ in range(EXPERTS))

    def gates(self, h):
        weights, ids = self.router(h).softmax(-1).topk(2, dim=-1)
        return torch.zeros(*h.shape[:-1], EXPERTS, dtype=h.dtype).scatter(-1, ids, weights)

    def forward(self, h):
        gates = self.gates(h)
        out = torch.zeros_like(h)
        for index, expert in enumerate(self.experts):
            out = out + expert(h) * gates[..., index, None]
        return out


class Accumulated(Unrolled):
    def forward(self, h):
        gates = self.gates(h)
        out = torch.zeros_like(h)
        for index, expert in enumerate(self.experts):
            out += gates[..., index].unsqueeze(-1) * expert(h)
        return out


class Llama4(Experts):
    """All experts meet all tokens, scaled before: no gather, no index."""

    def forward(self, h):
        scores = self.router(h.flatten(0, 1))
        values, ids = scores.topk(1, dim=-1)
        gates = torch.full_like(scores, float("-inf")).scatter(1, ids, values).sigmoid().t()
        out = torch.bmm(h.reshape(1, -1, WIDTH).repeat(EXPERTS, 1, 1) * gates.unsqueeze(-1), self.stacked)
        return out.sum(0).view(h.shape)


class SortedRows(Experts):
    """Tokens are sorted by expert, and the sorted rows go through stacked weights."""

    def forward(self, h):
        flat = h.flatten(0, 1)
        best = self.router(flat).argmax(-1)
        order = best.argsort()
        out = torch.bmm(flat[order].unsqueeze(1), self.stacked[best[order]]).squeeze(1)
        return torch.zeros_like(flat).index_copy(0, order, out).view(h.shape)


class Tables(Experts):
    """Experts that are rows of an embedding table (Doge)."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Embedding(EXPERTS, WIDTH), nn.Embedding(EXPERTS, WIDTH)

    def forward(self, h):
        weights, ids = self.router(h).topk(2, dim=-1)
        hidden = F.silu((self.down(ids) * h.unsqueeze(-2)).sum(-1)) * weights.softmax(-1)
        return (hidden.unsqueeze(-1) * self.up(ids)).sum(-2)


class Latent(Experts):
    """A projection after the combine (nemotron)."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, h):
        return self.out(super().forward(h))


@pytest.mark.parametrize("experts", [Experts, Llama4, SortedRows, Tables, Latent])
def test_routed(experts):
    assert kinds(feed_forward=experts) == ["attention", "routed"]


@pytest.mark.parametrize("experts", [Unrolled, Accumulated])
def test_unrolled_experts_are_routed_terms(experts):
    found = kinds(feed_forward=experts)
    assert found[0] == "attention"
    assert found.count("routed") == EXPERTS  # and the zeros that the sum starts with


class GatedShared(MoE):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(WIDTH, 1)

    def forward(self, h):
        return self.shared(h) * torch.sigmoid(self.gate(h)) + self.routed(h) * 2.5


def test_gated_shared_expert():
    assert sorted(kinds(feed_forward=GatedShared)) == ["attention", "routed", "shared"]


class Sandwich(Layer):
    def __init__(self, feed_forward):
        super().__init__(feed_forward)
        self.post1, self.post2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)

    def forward(self, x):
        x = x + self.post1(self.attention(self.norm1(x)))
        return x + self.post2(self.feed_forward(self.norm2(x)))


def test_routed_and_shared_before_a_norm_stay_together_and_that_is_noted():
    table = table_of(Stack(lambda: Sandwich(MoE())))
    assert [term.shared_inside for term in table.terms] == [False, False, True, False, True]
    assert {row.kind for row in table.rows} == {"attention", "routed"}
    request = ask(table, "full")
    assert table.names(request.left_out["attention.1"]) == ["r0"]


def test_dropout_after_routed_and_shared_is_inseparable():
    class Drops(Layer):
        def forward(self, x):
            x = x + self.attention(self.norm1(x))
            return x + F.dropout(self.feed_forward(self.norm2(x)), 0.1, True)

    table = table_of(Stack(lambda: Drops(MoE())))
    with pytest.raises(InseparableExpertsError, match="dropout"):
        ask(table, "full")
    assert ask(table, "mlp").left_out
    # without a shared expert there is nothing to part
    assert ask(table_of(Stack(lambda: Drops(Experts()))), "full").left_out


def test_inactive_dropout_is_linear():
    class Drops(Layer):
        def forward(self, x):
            x = x + self.attention(self.norm1(x))
            return x + F.dropout(self.feed_forward(self.norm2(x)), 0.1, self.training)

    table = table_of(Stack(lambda: Drops(MoE())))
    assert [term.name for term in table.terms if term.layer == 1 and term.kind != "attention"] == ["r1", "s1"]


def test_routed_experts_around_a_token_mixer_are_refused():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixer, self.experts = Cumulative(), Experts()

        def forward(self, h):
            return self.experts(self.mixer(h))

    with pytest.raises(UnsupportedPatternError, match="neither an attention nor a MoE"):
        table_of(Stack(lambda: Layer(Mixed())))


def test_names_decide_nothing():
    class MoEGate(Attention):
        """An attention whose modules are called like experts."""

        def __init__(self):
            super().__init__()
            self.experts = self.q

    class SelfAttention(Experts):
        pass

    assert kinds(attention=MoEGate, feed_forward=SelfAttention) == ["attention", "routed"]
