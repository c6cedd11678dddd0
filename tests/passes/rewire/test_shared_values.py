# SPDX-License-Identifier: Apache-2.0
"""Inner values that several sub-blocks use: whose they are once only some of these read less of the stream."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.graphs import Experts, Layer, Stack, ids, reads
from tests.passes.rewire.test_rewire import rewired


@pytest.mark.parametrize(("row", "sees_all"), [("attention.1", False), ("moe.1", True)])
def test_a_shared_norm_that_is_returned_is_the_one_of_its_owner(row, sees_all):
    """The attention, which comes first, owns it; it may be the row that changes, or the one that does not."""

    class Returns(Stack):
        def forward(self, ids):
            x = self.embedding(ids)
            for layer in self.layers:
                h = layer.norm1(x)
                seen = h * 2
                x = x + layer.attention(h) + layer.feed_forward(h)
            return self.head(self.norm(x)), seen

    class ByHand(Returns):
        def forward(self, ids):
            first, second = self.layers
            x = self.embedding(ids)
            h = first.norm1(x)
            n = x + first.attention(h)
            x = n + first.feed_forward(h)
            whole, without = second.norm1(x), second.norm1(n)
            a, m = (whole, without) if sees_all else (without, whole)
            return self.head(self.norm(x + second.attention(a) + second.feed_forward(m))), a * 2

    def make():
        return Layer(Experts())

    _, output, _ = rewired(Returns(make), {row: ["r0"]})
    for ours, theirs in zip(output, ByHand(make)(ids()), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("row", "sees_all"), [("attention.1", False), ("moe.1", True)])
def test_a_shared_norm_that_a_later_block_uses_too_is_the_one_of_its_owner(row, sees_all):
    """As above, beside the stream: the last experts are scaled by what the norm before them has given."""

    class Remembers(Stack):
        def forward(self, ids):
            x, kept = self.embedding(ids), None
            for layer in self.layers:
                h = layer.norm1(x)
                a, f = layer.attention(h), layer.feed_forward(h)
                x = x + a + (f if kept is None else f * kept.mean(-1, keepdim=True))
                kept = h if layer is self.layers[1] else None
            return self.head(self.norm(x))

    class ByHand(Remembers):
        def forward(self, ids):
            first, second, third = self.layers
            x = self.embedding(ids)
            h = first.norm1(x)
            n = x + first.attention(h)
            x = n + first.feed_forward(h)
            whole, without = second.norm1(x), second.norm1(n)
            a, m = (whole, without) if sees_all else (without, whole)
            x = x + second.attention(a) + second.feed_forward(m)
            h = third.norm1(x)
            return self.head(self.norm(x + third.attention(h) + third.feed_forward(h) * a.mean(-1, keepdim=True)))

    def make():
        return Layer(Experts())

    _, output, _ = rewired(Remembers(make, 3), {row: ["r0"]})
    assert torch.equal(output, ByHand(make, 3)(ids()))


def test_a_side_channel_stays_one_where_its_reader_reads_an_older_stream():
    """The experts see the keys of the attention beside them; the stream that they read then is older than the keys."""

    class SeesKeys(Stack):
        def block(self, layer, x, n):
            h = layer.norm1(x)
            q, k, v = layer.attention.q(h), layer.attention.k(h), layer.attention.v(h)
            a = layer.attention.o(F.scaled_dot_product_attention(q, k, v, is_causal=True))
            seen = x + a if n is None else n
            return a, layer.feed_forward(layer.norm2(seen) * k.mean(-1, keepdim=True))

        def forward(self, ids):
            x = self.embedding(ids)
            for layer in self.layers:
                a, f = self.block(layer, x, None)
                x = x + a + f
            return self.head(self.norm(x))

    class ByHand(SeesKeys):
        def forward(self, ids):
            first, second = self.layers
            e = self.embedding(ids)
            a0, f0 = self.block(first, e, None)
            x = e + a0 + f0
            a1, f1 = self.block(second, x, e + f0)
            return self.head(self.norm(x + a1 + f1))

    def make():
        return Layer(Experts())

    _, output, table = rewired(SeesKeys(make), {"moe.1": ["a0", "a1"]})
    assert reads(table)["moe.1"] == "e r0"
    assert torch.equal(output, ByHand(make)(ids()))
