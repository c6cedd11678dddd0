# SPDX-License-Identifier: Apache-2.0
"""The edit itself: who gets a copy, what stays untouched, what can't be copied."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.passes.graph import effects, ops
from farskip_compile.passes.normalize import normalize
from farskip_compile.passes.residual import read_table
from farskip_compile.passes.rewire import rewire
from farskip_compile.passes.rewire.request import RewireRequest, ask
from farskip_compile.verify.rewiring import snapshot, verify
from tests.graphs import WIDTH, Experts, Layer, MoE, Stack, dynamo, ids, reads


def rewired(model, wish, *inputs):
    """Graph, output and table after rewiring `model`."""
    tables = []

    def edit(module):
        normalize(module)
        reading = read_table(module.graph)
        request = ask(reading.table, wish)
        wanted, before = request.wanted(reading.table), snapshot(reading)
        rewire(module, reading, request)
        tables.append(verify(module, wanted, before).table)

    module, output = dynamo(model, *(inputs or (ids(),)), edit=edit)
    return module, output, tables[0]


def count(module, name: str) -> int:
    return sum(ops.op_name(node) == name for node in module.graph.nodes)


class Parallel(Layer):
    def forward(self, x):
        h = self.norm1(x)
        return x + self.attention(h) + (self.feed_forward.routed(h) + self.feed_forward.shared(h))


def test_a_shared_norm_is_copied_for_the_row_that_changes():
    class ByHand(Stack):
        def forward(self, ids):
            x = n = self.embedding(ids)
            for layer in self.layers:
                a = layer.attention(layer.norm1(n))
                h = layer.norm1(x)
                r, s = layer.feed_forward.routed(h), layer.feed_forward.shared(h)
                n = x + a + s
                x = x + a + (r + s)
            return self.head(self.norm(x))

    model, by_hand = Stack(lambda: Parallel(MoE()), 3), ByHand(lambda: Parallel(MoE()), 3)
    plain, _ = dynamo(model, ids())
    module, output, table = rewired(model, "full")
    assert count(module, "rms_norm") == count(plain, "rms_norm") + 2  # one more in each layer but the first
    assert reads(table)["moe.1"] == "e a0 r0 s0"
    assert reads(table)["attention.1"] == "e a0 s0"
    assert torch.equal(output, by_hand(ids()))


def test_rows_that_change_alike_share_the_norm():
    model = Stack(lambda: Parallel(MoE()))
    plain, _ = dynamo(model, ids())
    module, _, _ = rewired(model, {"attention.1": ["r0"], "moe.1": ["r0"]})
    assert count(module, "rms_norm") == count(plain, "rms_norm")


def test_rows_that_change_in_different_ways_do_not():
    model = Stack(lambda: Parallel(MoE()))
    plain, _ = dynamo(model, ids())
    module, _, table = rewired(model, {"attention.1": ["r0"], "moe.1": ["s0"]})
    assert count(module, "rms_norm") == count(plain, "rms_norm") + 1
    assert (reads(table)["attention.1"], reads(table)["moe.1"]) == ("e a0 s0", "e a0 r0")


def test_a_dropout_behind_a_shared_norm_can_not_be_computed_twice():
    class Drops(Parallel):
        def forward(self, x):
            h = F.dropout(self.norm1(x), 0.1, True)
            return x + self.attention(h) + (self.feed_forward.routed(h) + self.feed_forward.shared(h))

    with pytest.raises(UnsupportedPatternError, match="dropout"):
        rewired(Stack(lambda: Drops(MoE())), "full")


def test_every_term_still_reaches_the_final_state():
    module, _, table = rewired(Stack(lambda: Layer(MoE()), 3), "full")
    stream = read_table(module.graph).stream
    assert len(stream.terms_of(stream.root)) == len(table.terms)
    assert not [node for node in module.graph.nodes if not node.users and effects.is_pure(node)]


def test_dead_code_of_the_model_is_left_alone():
    class Dead(Layer):
        def forward(self, x):
            torch.tanh(x)
            return super().forward(x)

    model = Stack(lambda: Dead(MoE()))
    plain, _ = dynamo(model, ids())
    module, _, _ = rewired(model, "full")
    assert count(module, "tanh") == count(plain, "tanh") == 2


def test_multipliers_and_rounding_are_applied_anew():
    class Scaled(Layer):
        def forward(self, x):
            x = (x + 0.22 * self.attention(self.norm1(x))).float().double()
            h = self.norm2(x)
            return (x + 0.22 * (self.feed_forward.routed(h) + self.feed_forward.shared(h))).float().double() * 0.9

    class ByHand(Stack):
        def forward(self, ids):
            x = n = self.embedding(ids)
            for layer in self.layers:
                a = 0.22 * layer.attention(layer.norm1(n))
                h = layer.norm2(x.float().double())
                r, s = layer.feed_forward.routed(h), layer.feed_forward.shared(h)
                x = (x + a).float().double()
                n = (x + 0.22 * s).float().double() * 0.9
                x = (x + 0.22 * (r + s)).float().double() * 0.9
            return self.head(self.norm(x))

    _, output, _ = rewired(Stack(lambda: Scaled(MoE()), 3), "full")
    assert torch.equal(output, ByHand(lambda: Scaled(MoE()), 3)(ids()))


def test_the_rest_of_a_mixed_precision_sum_keeps_its_dtype():
    """A narrow embedding and a wide attention: what reads the sum without the attention must still read it wide."""

    class Direct(Layer):
        def forward(self, x):
            x = x.to(torch.bfloat16)
            x = x + self.attention(self.norm1(x.double()))
            return x + self.feed_forward(x)

    class ByHand(Direct):
        def forward(self, x):
            x = x.to(torch.bfloat16)
            return x + self.attention(self.norm1(x.double())) + self.feed_forward(x.double())

    model, by_hand = Stack(lambda: Direct(Experts()), 1), Stack(lambda: ByHand(Experts()), 1)
    _, output, table = rewired(model, "full")
    assert reads(table) == {"attention.0": "e", "moe.0": "e"}
    assert torch.equal(output, by_hand(ids()))


def test_the_rest_of_a_mixed_precision_difference_keeps_its_dtype():
    """A wide attention minus a narrow stream: without the attention, the stream negated, and wide."""

    class Difference(Layer):
        def forward(self, x):
            x = x.to(torch.bfloat16)
            x = self.attention(self.norm1(x.double())) - x
            return x + self.feed_forward(x)

    class ByHand(Difference):
        def forward(self, x):
            x = x.to(torch.bfloat16)
            return self.attention(self.norm1(x.double())) - x + self.feed_forward(-x.double())

    model, by_hand = Stack(lambda: Difference(Experts()), 1), Stack(lambda: ByHand(Experts()), 1)
    _, output, _ = rewired(model, "full")
    assert torch.equal(output, by_hand(ids()))


def test_sandwich_leaves_out_the_whole_term():
    class Sandwich(Layer):
        def __init__(self, feed_forward):
            super().__init__(feed_forward)
            self.post = nn.RMSNorm(WIDTH)

        def forward(self, x):
            x = x + self.attention(self.norm1(x))
            return x + self.post(self.feed_forward(self.norm2(x)))

    class ByHand(Stack):
        def forward(self, ids):
            x = n = self.embedding(ids)
            for layer in self.layers:
                a = layer.attention(layer.norm1(n))
                r = layer.post(layer.feed_forward(layer.norm2(x)))
                n = x + a
                x = n + r
            return self.head(self.norm(x))

    _, output, _ = rewired(Stack(lambda: Sandwich(MoE()), 3), "full")
    assert torch.equal(output, ByHand(lambda: Sandwich(MoE()), 3)(ids()))


def test_a_reader_of_two_streams_leaves_the_term_out_of_both():
    class Mixes(Stack):
        def read(self, x, before, n, n_before):
            return x + 0.5 * before

        def forward(self, ids):
            x = before = n = n_before = self.embedding(ids)
            for layer in self.layers:
                h = layer.norm1(self.read(x, before, n, n_before))
                before, n_before = x, n
                a = layer.attention(h)
                g = layer.norm2(x + a)
                r, s = layer.feed_forward.routed(g), layer.feed_forward.shared(g)
                n = x + a + s
                x = x + a + (r + s)
            return self.head(self.norm(x))

    class ByHand(Mixes):
        """The routed part of the layer before is left out of the newer stream; the older never had it."""

        def read(self, x, before, n, n_before):
            return n + 0.5 * before

    make = lambda: Layer(MoE())  # noqa: E731
    _, output, _ = rewired(Mixes(make, 3), "attention")
    assert torch.equal(output, ByHand(make, 3)(ids()))


def test_caches_stay_in_order():
    class Cached(Stack):
        def forward(self, ids, keys):
            x = self.embedding(ids)
            for index, layer in enumerate(self.layers):
                h = layer.norm1(x)
                keys[index].copy_(layer.attention.k(h))
                scores = layer.attention.q(h) @ keys[index].transpose(-1, -2)
                x = x + layer.attention.o(scores.softmax(-1) @ layer.attention.v(h))
                x = x + layer.feed_forward(layer.norm2(x))
            return self.head(self.norm(x))

    class ByHand(Stack):
        def forward(self, ids, keys):
            x = n = self.embedding(ids)
            for index, layer in enumerate(self.layers):
                g, h = layer.norm1(n), layer.norm2(x)
                keys[index].copy_(layer.attention.k(g))
                scores = layer.attention.q(g) @ keys[index].transpose(-1, -2)
                a = layer.attention.o(scores.softmax(-1) @ layer.attention.v(g))
                r, s = layer.feed_forward.routed(h), layer.feed_forward.shared(h)
                n = x + a + s
                x = x + a + (r + s)
            return self.head(self.norm(x))

    model, by_hand = Cached(lambda: Layer(MoE()), 3), ByHand(lambda: Layer(MoE()), 3)
    mine, theirs = (torch.zeros(3, *ids().shape, WIDTH, dtype=torch.float64) for _ in range(2))
    _, output, _ = rewired(model, "full", ids(), mine)
    with torch.no_grad():
        assert torch.equal(output, by_hand(ids(), theirs))
    assert torch.equal(mine, theirs)


def test_an_empty_request_touches_nothing():
    module, _ = dynamo(Stack(lambda: Layer(MoE())), ids())
    reading = read_table(module.graph)
    nodes = [(node, node.args) for node in module.graph.nodes]
    assert rewire(module, reading, RewireRequest({})) == 0
    assert [(node, node.args) for node in module.graph.nodes] == nodes
