# SPDX-License-Identifier: Apache-2.0
"""One FarSkip layer under tensor parallelism, by hand, with the work that hides each all-reduce.

In:    a decoder layer, its input streams and the tokens' positions; all ranks have the same tokens.
Out:   its output streams, the routed experts' all-reduce possibly in flight; sums in the order of `FarSkipForm`.
Never: has anything unnecessary in flight: r is reduced separately from the terms that the next attention reads.

Forward, layer k (arXiv 2511.11505, section 4.2):
    1. attention on n, this rank's share a                       all-reduce of r of layer k-1 in flight
    2. launch the all-reduce of a
    3. wait for r of layer k-1; x, norm
    4. shared experts s; launch their all-reduce                 a in flight
    5. router, routed experts r                                  a and s in flight
    6. wait for a and s; launch the all-reduce of r; n           r in flight, up to step 3 of layer k + 1
Merged, step 2 is left out, and step 4 launches one all-reduce of a + s. In the last layer r and s are reduced as one
sum, since nothing reads the stream in between; in a dense layer the MLP's reduction is waited for at once.

Backward. The gradient of r needs only that of x; those of a and s also need that of n, which comes from the next
attention. A layer's attention is the oldest of its nodes, and so the last to run: after the gradient of x is complete
and the all-reduce of r of layer k-1 is launched. The attention of layer k hides that one, and the routed experts of
layer k-1 hide those of a and s. Only launches need a sequence number.
"""

from __future__ import annotations

import torch

from farskip_compile.models.decoder import DecoderLayer
from farskip_compile.models.mlp import MLP
from farskip_compile.models.moe import MoE, summed
from farskip_compile.models.rope import Rope
from hand_forms.async_collectives import Streams, launch_all_reduce


def all_reduce_layer(layer: DecoderLayer, streams: Streams, rope: Rope, *, last: bool, merge: bool) -> Streams:
    """Return the output streams [B, T, D] of one layer.

    Args:
        layer: of the decoder.
        streams: its input.
        rope: the positions of the tokens.
        last: no layer follows.
        merge: reduce attention and shared experts together if both exist and are needed apart from r.
    """
    feed_forward, group = layer.feed_forward, layer.parallel.tp_group
    a = layer.attention.partial(layer.attention_norm(streams.n), rope)
    if merge and not last and isinstance(feed_forward, MoE) and feed_forward.shared_experts:
        return _merged(layer, feed_forward, a, streams)
    attention = launch_all_reduce(a, group)
    x = streams.x()
    h = layer.norm_before_feed_forward(x)
    if last or isinstance(feed_forward, MLP):
        partial = feed_forward.partial(h)
        x_and_a = x + layer.scaled(attention.wait())
        return Streams(x_and_a + layer.scaled(launch_all_reduce(partial, group).wait()))

    shared = [launch_all_reduce(summed(parts), group) for parts in [feed_forward.shared(h)] if parts]
    routed = feed_forward.routed(h)
    a, s = attention.wait(), [launched.wait() for launched in shared]
    in_flight = launch_all_reduce(routed, group)
    x_and_a = x + layer.scaled(a)

    def late() -> torch.Tensor:
        return x_and_a + layer.scaled(summed([in_flight.wait(), *s]))

    return Streams(summed([x_and_a, *map(layer.scaled, s)]), late)


def _merged(layer: DecoderLayer, moe: MoE, a: torch.Tensor, streams: Streams) -> Streams:
    group = layer.parallel.tp_group
    x = streams.x()
    h = layer.norm_before_feed_forward(x)
    attention_and_shared = launch_all_reduce(a + summed(moe.shared(h)), group)
    routed = moe.routed(h)
    n = x + layer.scaled(attention_and_shared.wait())
    in_flight = launch_all_reduce(routed, group)
    return Streams(n, lambda: n + layer.scaled(in_flight.wait()))
