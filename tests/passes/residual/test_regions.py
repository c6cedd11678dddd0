# SPDX-License-Identifier: Apache-2.0
"""What belongs to a sub-block and what it reads: shared norms, side channels, sums inside a sub-block."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.passes.normalize import normalize
from farskip_compile.passes.residual import read_table
from farskip_compile.passes.rewire import rewire
from farskip_compile.passes.rewire.request import ask
from tests.graphs import WIDTH, Attention, Dense, Experts, Layer, MoE, Stack, dynamo, ids, reading_of, reads, table_of

STANDARD = {"attention.0": "e", "moe.0": "e a0", "attention.1": "e a0 r0 s0", "moe.1": "e a0 r0 s0 a1"}


class Parallel(Layer):
    """Attention and MoE read one norm of the same value."""

    def forward(self, x):
        h = self.norm1(x)
        return x + self.attention(h) + self.feed_forward(h)


def test_parallel_block_with_one_norm():
    table = table_of(Stack(lambda: Parallel(MoE())))
    assert reads(table) == {"attention.0": "e", "moe.0": "e", "attention.1": "e a0 r0 s0", "moe.1": "e a0 r0 s0"}


def test_parallel_block_that_adds_the_experts_first():
    class Swapped(Layer):
        def forward(self, x):
            h = self.norm1(x)
            return x + self.feed_forward(h) + self.attention(h)

    table = table_of(Stack(lambda: Swapped(MoE())))
    assert [(row.name, row.layer) for row in table.rows] == [
        ("attention.0", 0),
        ("moe.0", 0),
        ("attention.1", 1),
        ("moe.1", 1),
    ]
    assert reads(table)["moe.1"] == reads(table)["attention.1"] == "e r0 s0 a0"


class SharedKeys(Stack):
    """The second layer takes keys and values of the first (Gemma 3n)."""

    def forward(self, ids):
        x, kept = self.embedding(ids), None
        for layer in self.layers:
            h, attention = layer.norm1(x), layer.attention
            kept = (attention.k(h), attention.v(h)) if kept is None else kept
            x = x + attention.o(F.scaled_dot_product_attention(attention.q(h), *kept, is_causal=True))
            x = x + layer.feed_forward(layer.norm2(x))
        return self.head(self.norm(x))


def test_shared_keys_and_values_are_a_side_channel():
    reading = reading_of(SharedKeys(lambda: Layer(MoE())))
    assert reads(reading.table) == STANDARD
    second = reading.table.row("attention.1")
    assert reading.regions[second.terms[0]].side_channels


class RouterState(Stack):
    """Each router adds its logits to those of the layer before it."""

    def forward(self, ids):
        x, logits = self.embedding(ids), 0.0
        for layer in self.layers:
            x = x + layer.attention(layer.norm1(x))
            h = layer.norm2(x)
            logits = logits + layer.feed_forward.routed.scores(h)
            x = x + (layer.feed_forward.routed(h, logits) + layer.feed_forward.shared(h))
        return self.head(self.norm(x))


def test_router_state_is_a_side_channel():
    assert reads(table_of(RouterState(lambda: Layer(MoE())))) == STANDARD


def test_reused_indices_of_sparse_attention_are_a_side_channel():
    class Reused(Stack):
        def forward(self, ids):
            x, mask = self.embedding(ids), None
            for layer in self.layers:
                h, attention = layer.norm1(x), layer.attention
                q, k, v = attention.q(h), attention.k(h), attention.v(h)
                if mask is None:
                    scores = q @ k.transpose(-1, -2)
                    kept = scores.topk(2, dim=-1).indices
                    mask = torch.full_like(scores, -1e9).scatter(-1, kept, 0.0)
                x = x + attention.o(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
                x = x + layer.feed_forward(layer.norm2(x))
            return self.head(self.norm(x))

    assert reads(table_of(Reused(lambda: Layer(MoE())))) == STANDARD


class WithConvolution(nn.Module):
    """Inkling: `h + conv(h)` inside a sub-block looks like a residual sum."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.convolution = inner, nn.Conv1d(WIDTH, WIDTH, 3, padding=2, groups=WIDTH)

    def forward(self, h):
        h = self.inner(h)
        return h + self.convolution(h.transpose(1, 2))[..., :-2].transpose(1, 2)


def test_a_sum_inside_the_attention_is_one_term():
    class Inner(Layer):
        def __init__(self, feed_forward):
            super().__init__(feed_forward)
            self.attention = WithConvolution(Attention())

    assert reads(table_of(Stack(lambda: Inner(MoE())))) == STANDARD


def test_a_convolution_over_routed_output_is_part_of_it():
    table = table_of(Stack(lambda: Layer(WithConvolution(MoE()))))
    assert [term.name for term in table.terms] == ["e", "a0", "r0", "a1", "r1"]


def test_a_convolution_in_front_of_experts_is_refused():
    class InFront(WithConvolution):
        def forward(self, h):
            return self.inner(h + self.convolution(h.transpose(1, 2))[..., :-2].transpose(1, 2))

    with pytest.raises(UnsupportedPatternError, match="mixes tokens"):
        table_of(Stack(lambda: Layer(InFront(MoE()))))


def test_a_dense_residual_inside_the_mlp_is_one_term():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Dense(), Dense()

        def forward(self, h):
            h = self.first(h)
            return h + self.second(h)

    class Mixed(Stack):
        def forward(self, ids):
            x = self.embedding(ids)
            x = self.layers[0](x)
            x = self.layers[1](x)
            return self.head(self.norm(x))

    blocks = iter([Deep, MoE])
    table = table_of(Mixed(lambda: Layer(next(blocks)())))
    assert reads(table) == {
        "attention.0": "e",
        "mlp.0": "e a0",
        "attention.1": "e a0 m0",
        "moe.1": "e a0 m0 a1",
    }


def test_a_term_that_scales_its_neighbour_is_its_own_even_if_it_is_rounded_later():
    """The routed output is rounded after the shared expert that it scales: both are one term, and it is routed."""

    class Scales(MoE):
        def forward(self, h):
            routed = self.routed(h)
            shared = self.shared(h * routed.sigmoid().mean(-1, keepdim=True))
            return shared + routed.float().double()

    assert reads(table_of(Stack(lambda: Layer(Scales())))) == {
        "attention.0": "e",
        "moe.0": "e a0",
        "attention.1": "e a0 r0",
        "moe.1": "e a0 r0 a1",
    }


class FarSkipForm(Stack):
    """Written by hand: attention reads n, the MoE reads x."""

    def forward(self, ids):
        x = n = self.embedding(ids)
        for layer in self.layers:
            a = layer.attention(layer.norm1(n))
            h = layer.norm2(x)
            r, s = layer.feed_forward.routed(h), layer.feed_forward.shared(h)
            x = x + a
            n = x + s
            x = x + (r + s)
        return self.head(self.norm(x))


class FarSkipFormOneSum(FarSkipForm):
    """The same, with x built on n."""

    def forward(self, ids):
        x = n = self.embedding(ids)
        for layer in self.layers:
            a = layer.attention(layer.norm1(n))
            h = layer.norm2(x)
            n = x + a + layer.feed_forward.shared(h)
            x = n + layer.feed_forward.routed(h)
        return self.head(self.norm(x))


@pytest.mark.parametrize("form", [FarSkipForm, FarSkipFormOneSum])
def test_farskip_form_is_read_as_such(form):
    table = table_of(form(lambda: Layer(MoE()), layers=3))
    rows = {name: set(names.split()) for name, names in reads(table).items()}
    assert rows["attention.1"] == {"e", "a0", "s0"}
    assert rows["moe.1"] == {"e", "a0", "s0", "r0"}
    assert rows["attention.2"] == {"e", "a0", "s0", "r0", "a1", "s1"}
    assert rows["moe.2"] == {"e", "a0", "s0", "r0", "a1", "s1", "r1"}


def test_terms_seen_through_views_of_their_own():
    """n and x each reshape and scale what they add."""

    class Views(Stack):
        def forward(self, ids):
            x = n = self.embedding(ids)
            for layer in self.layers:
                a = layer.attention(layer.norm1(n)).reshape(-1, WIDTH)
                h = layer.norm2(x)
                r, s = layer.feed_forward.routed(h), layer.feed_forward.shared(h)
                n = (x + a.view(x.shape) * 0.5) + s * 0.5
                x = (x + a.view(x.shape) * 0.5) + (r + s) * 0.5
            return self.head(self.norm(x))

    rows = {name: set(names.split()) for name, names in reads(table_of(Views(lambda: Layer(MoE())), ids())).items()}
    assert rows["attention.1"] == {"e", "a0", "s0"}
    assert rows["moe.1"] == {"e", "a0", "s0", "r0"}


class UsesATerm(Stack):
    """Each attention is given what the experts before it have added, beside the stream."""

    def forward(self, ids):
        x, added = self.embedding(ids), None
        for layer in self.layers:
            h = layer.norm1(x)
            x = x + layer.attention(h if added is None else h + added)
            added = layer.feed_forward(layer.norm2(x))
            x = x + added
        return self.head(self.norm(x))


def test_a_term_that_is_used_as_it_is_can_not_be_left_out():
    def edit(module):
        normalize(module)
        reading = read_table(module.graph)
        assert reads(reading.table)["attention.1"] == "e a0 r0"
        attention = reading.regions[reading.table.term("a1").index]
        assert reading.table.names(attention.direct) == ["r0"]
        rewire(module, reading, ask(reading.table, "attention"))

    with pytest.raises(UnsupportedPatternError, match=r"attention\.1 uses what another sub-block adds"):
        dynamo(UsesATerm(lambda: Layer(Experts())), ids(), edit=edit)
