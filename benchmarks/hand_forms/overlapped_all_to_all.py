# SPDX-License-Identifier: Apache-2.0
"""One FarSkip layer under expert parallelism, by hand, with the work that hides dispatch and combine.

In:    a decoder layer, its input streams and the tokens' positions.
Out:   its output streams, a combine possibly in flight; sums in the order of `FarSkipForm`.
Never: waits before the result is needed.

Forward, layer k after an MoE layer (arXiv 2511.11505, section 4.1):
    1. project: norm, queries, keys, values of n                 combine k-1 in flight
    2. wait for combine k-1; x
    3. norm of x, router, permutation of the rows
    4. launch dispatch k
    5. mix: the attention proper and its output projection       dispatch k in flight
    6. wait for dispatch k; routed experts
    7. launch combine k
    8. shared experts; n of the next layer                       combine k in flight, up to step 2 of layer k + 1
With no combine in flight, the router comes first, and the whole attention runs under dispatch k. A dense layer runs its
whole attention under combine k-1.

Backward, by the sequence numbers of `BackwardOrder`:
    launch combine k transposed; shared experts, mix; wait; routed experts
    launch dispatch k transposed; project, router's weights; wait; permutation, norm of x; layer k - 1

The weights of the chosen experts stay on the token's rank, which needs them, and are not dispatched. So the router's
backward does not wait for the dispatch either.
"""

from __future__ import annotations

import torch

from farskip_compile.models.attention import Heads
from farskip_compile.models.decoder import DecoderLayer
from farskip_compile.models.mlp import MLP
from farskip_compile.models.moe import MoE, summed
from farskip_compile.models.rope import Rope
from hand_forms.async_collectives import BackwardOrder, Streams, backward_at
from hand_forms.overlapped_exchange import make_exchange


def all_to_all_layer(layer: DecoderLayer, streams: Streams, rope: Rope) -> Streams:
    """Return the output streams [B, T, D] of one layer, for this rank's tokens."""
    if isinstance(layer.feed_forward, MLP):
        return _dense(layer, layer.feed_forward, streams, rope)
    return _moe(layer, layer.feed_forward, streams, rope)


def _dense(layer: DecoderLayer, mlp: MLP, streams: Streams, rope: Rope) -> Streams:
    a = layer.attention(layer.attention_norm(streams.n), rope)
    x = streams.x()
    return Streams((x + layer.scaled(a)) + layer.scaled(mlp(layer.norm_before_feed_forward(x))))


def _moe(layer: DecoderLayer, moe: MoE, streams: Streams, rope: Rope) -> Streams:
    heads = None if streams.late is None else _project(layer, streams.n, rope)
    x = streams.x()
    h = layer.norm_before_feed_forward(x)
    tokens = h.flatten(0, 1)
    rows, expert_of_row, weights = moe.assign(tokens)
    backward_at(BackwardOrder.ROUTING, weights)
    exchange = make_exchange(moe.experts, moe.slots(tokens.shape[0]))
    exchange.dispatch(rows, expert_of_row)

    if heads is None:
        heads = _project(layer, streams.n, rope)
    x_and_a = x + layer.scaled(layer.attention.mix(heads, rope))
    exchange.combine(exchange.compute())
    shared = moe.shared(h)

    def late() -> torch.Tensor:
        routed = moe.dropout(moe.weigh(exchange.returned(), weights).view_as(h))
        return x_and_a + layer.scaled(summed([routed, *shared]))

    return Streams(x_and_a + layer.scaled(summed(shared)) if shared else x_and_a, late)


def _project(layer: DecoderLayer, n: torch.Tensor, rope: Rope) -> Heads:
    heads = layer.attention.project(layer.attention_norm(n), rope)
    backward_at(BackwardOrder.PROJECTIONS, *heads)
    return heads
