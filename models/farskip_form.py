# SPDX-License-Identifier: Apache-2.0
"""The FarSkip form of a decoder, written by hand from the paper (arXiv 2511.11505): the oracle.

Two streams go from layer to layer (a: attention, r: routed experts, s: shared experts):
    x    the residual stream, everything summed
    n    the same without the routed output of the previous layer: available before that layer's combine has arrived
A FarSkip layer with experts is then
    a      = attention(norm(n))
    r, s   = experts(norm(x))                    before a is added: dispatch need not wait for the attention
    x_next = (x + a) + (r + s)
    n_next = (x + a) + s
and a dense layer is a parallel block: x_next = n_next = (x + attention(norm(n))) + mlp(norm(x)).
In "lag2" experts read norm(n), too. In "ladder" (arXiv 2501.06589), after dense layers as well, n_next is x + a: the
next attention waits for no feed-forward.
Where a layer ends in one reduction over tensor-parallel ranks, r and s are reduced separately here. The all-gather
after a norm (sequence parallelism) belongs to the reader: two readers of different streams gather twice.
A cache holds keys and values of norm(n), so it can't be shared with the plain model.

Contract: plain eager code that shares the decoder's modules and weights, and nothing of the compiler. Sums are formed
in the plain model's order, so that results can be compared bit for bit.
"""

from __future__ import annotations

from typing import cast, get_args

import torch
from torch import nn

from farskip_compile.base.choices import ConnectivityName
from farskip_compile.errors import ConfigError, LayerRangeError
from farskip_compile.models.cache import KeyValueCache
from farskip_compile.models.decoder import Decoder, DecoderLayer
from farskip_compile.models.moe import MoE, summed
from farskip_compile.models.rope import Rope


class FarSkipForm(nn.Module):
    """Token ids [B, T] -> logits [B, T, vocabulary], with the decoder's weights in the FarSkip wiring.

    Args:
        decoder: a plain model; its modules are used, not copied.
        connectivity: "full"; "attention": only attentions read n, feed-forwards read x + a as in the plain model;
            "mlp": only feed-forwards read x (without a), attentions read x; "lag2", "ladder": see the module; "none":
            the plain model.
        layers: first and last rewired layer, both inclusive; None: all. A layer before the range is plain, but the
            first layer in the range reads its n.
        merge_reductions: under tensor parallelism, one all-reduce of the sum of attention and shared outputs instead of
            one for each, or in "mlp" one for all of a layer. Equal up to rounding.

    Raises:
        ConfigError: an unknown connectivity, or `merge_reductions` where there is nothing to merge.
        LayerRangeError: `layers` outside of the model's.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        connectivity: ConnectivityName = "full",
        layers: tuple[int, int] | None = None,
        merge_reductions: bool = False,
    ) -> None:
        super().__init__()
        if connectivity not in get_args(ConnectivityName):
            raise ConfigError(f"connectivity must be one of {get_args(ConnectivityName)}, not {connectivity!r}")
        if merge_reductions and (connectivity not in ("full", "mlp") or decoder.parallel.tp_group is None):
            raise ConfigError(
                'merge_reductions needs tensor parallelism and connectivity "full" or "mlp"',
                way_out="only then are there partial sums that nothing reads separately",
            )
        last = len(decoder.layers) - 1
        self.first_layer, self.last_layer = (0, last) if layers is None else layers
        if not 0 <= self.first_layer <= self.last_layer <= last:
            raise LayerRangeError(f"layers {layers} lie outside the model's 0 to {last}")
        self.decoder = decoder
        self.connectivity = connectivity
        self.merge_reductions = merge_reductions

    def forward(self, ids: torch.Tensor, cache: KeyValueCache | None = None) -> torch.Tensor:
        """Token ids [B, T] -> logits [B, T, vocabulary]; with a cache as in `Decoder.forward`."""
        x = self.decoder.embed(ids)
        n = x
        rope = self.decoder.positions(x, ids, cache)
        for index in range(len(self.decoder.layers)):
            x, n = self.layer(index, x, n, rope)
        if cache is not None:
            cache.advance(ids.shape[1])
        return self.decoder.head(x, ids.shape[1])  # x: here nothing may be left out

    # Who reads what

    def attention_reads_n(self, index: int) -> bool:
        """Return whether the layer `index` exists, lies in the range, and has its attention rewired."""
        return self.first_layer <= index <= self.last_layer and self.connectivity not in ("mlp", "none")

    def feed_forward_reads_x(self, index: int) -> bool:
        """Return whether the layer `index` lies in the range, and its feed-forward skips the attention."""
        return self.first_layer <= index <= self.last_layer and self.connectivity not in ("attention", "none")

    # One layer

    def layer(self, index: int, x: torch.Tensor, n: torch.Tensor, rope: Rope) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the streams (x, n) of this rank after the layer `index`, with the positions in `rope`."""
        layer = cast(DecoderLayer, self.decoder.layers[index])
        feed_forward = layer.feed_forward
        exports_n = isinstance(feed_forward, MoE) and self.attention_reads_n(index + 1)
        attention_input = layer.gather(layer.attention_norm(n if self.attention_reads_n(index) else x), rope)

        if self.merge_reductions and exports_n and self.feed_forward_reads_x(index) and feed_forward.shared_experts:
            return self._merged(layer, attention_input, x, rope)
        if self.merge_reductions and self.connectivity == "mlp" and self.feed_forward_reads_x(index):
            h = layer.gather(layer.norm_before_feed_forward(x), rope)
            partial = layer.attention.partial(attention_input, rope) + feed_forward.partial(h)
            x = x + layer.scaled(layer.attention.reduce(partial))
            return x, x

        x_and_a = x + layer.scaled(layer.attention(attention_input, rope))
        # a parallel block has one norm, and its feed-forward always reads x
        reads_x = self.feed_forward_reads_x(index) or layer.feed_forward_norm is None
        lags = self.connectivity == "lag2" and isinstance(feed_forward, MoE) and self.feed_forward_reads_x(index)
        h = layer.gather(layer.norm_before_feed_forward(n if lags else x if reads_x else x_and_a), rope)
        if self.connectivity == "ladder" and self.attention_reads_n(index + 1):
            return x_and_a + layer.scaled(feed_forward(h)), x_and_a
        if not exports_n:  # dense, or no reader leaves the routed output out: one stream
            x = x_and_a + layer.scaled(feed_forward(h))
            return x, x
        return self._split(layer, x_and_a, h)

    def _split(self, layer: DecoderLayer, x_and_a: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run an MoE layer whose routed output the next attention leaves out."""
        moe = cast(MoE, layer.feed_forward)
        routed, shared = moe.routed(h), moe.shared(h)
        if not shared:
            return x_and_a + layer.scaled(moe.reduce(routed)), x_and_a
        s = summed(shared)
        if moe.parallel.tp_group is not None:  # separately: s must not wait for the routed experts
            s = moe.reduce(s)
            everything = moe.reduce(routed) + s
        else:
            everything = summed([routed, *shared])
        return x_and_a + layer.scaled(everything), x_and_a + layer.scaled(s)

    def _merged(
        self, layer: DecoderLayer, attention_input: torch.Tensor, x: torch.Tensor, rope: Rope
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the same with one all-reduce for a + s: x_next = (x + AR(a + s)) + AR(r), n_next = x + AR(a + s)."""
        moe = cast(MoE, layer.feed_forward)
        a = layer.attention.partial(attention_input, rope)
        h = layer.gather(layer.norm_before_feed_forward(x), rope)
        routed, s = moe.routed(h), summed(moe.shared(h))
        n = x + layer.scaled(moe.reduce(a + s))
        return n + layer.scaled(moe.reduce(routed)), n
