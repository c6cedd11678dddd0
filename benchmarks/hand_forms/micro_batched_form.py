# SPDX-License-Identifier: Apache-2.0
"""The plain decoder on the batch in two halves, scheduled against each other by hand as in serving engines.

In:    a plain decoder under expert parallelism by all-to-all; its modules are used, not copied.
Out:   the decoder's results for each half alone, forward and backward, in eager mode.
Never: rewires anything; cuts a sequence. Padded exchanges have room for the tokens of a half, so that other rows may be
       dropped than of the whole batch.

Published engines run two micro-batches through the whole stack, one's exchanges beside the other's compute (dual-batch
overlap of vLLM and SGLang, DualPipe of DeepSeek). Here, in each layer:

    1. for each half: wait for the combine of the layer before; attention, norm, router; launch the dispatch; shared
       experts                                  the other half's combine, then its dispatch in flight
    2. for each half: wait for the dispatch, experts, launch the combine
                                                the other half's dispatch, then its combine in flight
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from farskip_compile.errors import ConfigError
from farskip_compile.models.decoder import Decoder, DecoderLayer
from farskip_compile.models.mlp import MLP
from farskip_compile.models.moe import MoE, summed
from farskip_compile.models.rope import Rope
from hand_forms.async_collectives import Launched
from hand_forms.chunked_form import ExpertChunk, Permuted, permuted, refuse_unless_all_to_all


@dataclass
class _Half:
    """A half of the batch on its way through the stack."""

    x: torch.Tensor
    """The stream, without terms that are in flight."""
    flying: _Flying | None = None


@dataclass
class _Flying:
    """An exchange of a half."""

    layer: DecoderLayer
    rows: Permuted
    exchange: ExpertChunk
    launched: Launched
    weights: torch.Tensor
    shared: list[torch.Tensor]


class MicroBatchedForm(nn.Module):
    """A module that maps token ids [B, T] to logits [B, T, vocabulary].

    Args:
        decoder: a plain model.

    Raises:
        ParallelismError: no expert parallelism by all-to-all, or another one besides.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        refuse_unless_all_to_all(decoder)
        self.decoder = decoder

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Map token ids [B, T] to logits [B, T, vocabulary].

        Raises:
            ConfigError: a batch of one sequence.
        """
        batch, length = ids.shape
        if batch < 2:
            raise ConfigError("a batch of one sequence has no halves", way_out="two sequences or more")
        halves = [_Half(self.decoder.embed(part)) for part in ids.split((batch + 1) // 2)]
        rope = self.decoder.rope(halves[0].x, length)
        for module in self.decoder.layers:
            layer = cast(DecoderLayer, module)
            for half in halves:  # 1.
                _land(half)
                _attend(half, layer, rope)
            for half in halves:  # 2.
                _apply_experts(half)
        for half in halves:
            _land(half)
        return self.decoder.head(torch.cat([half.x for half in halves]), length)


def _attend(half: _Half, layer: DecoderLayer, rope: Rope) -> None:
    if isinstance(layer.feed_forward, MLP) or layer.feed_forward_norm is None:
        half.x = layer(half.x, rope)
        return
    moe = layer.feed_forward
    half.x = half.x + layer.scaled(layer.attention(layer.attention_norm(half.x), rope))
    h = layer.norm_before_feed_forward(half.x)
    tokens = h.flatten(0, 1)
    rows, expert_of_row, weights = moe.assign(tokens)
    found = permuted(moe, rows, expert_of_row, tokens)
    exchange = ExpertChunk(moe, found, 0, moe.experts.local_experts)
    launched = exchange.dispatch()
    half.flying = _Flying(layer, found, exchange, launched, weights, moe.shared(h))


def _apply_experts(half: _Half) -> None:
    if half.flying is not None:
        half.flying.launched = half.flying.exchange.combine(half.flying.launched.wait())


def _land(half: _Half) -> None:
    """Wait for the combine in flight, and add its results to the stream."""
    if half.flying is None:
        return
    flying, half.flying = half.flying, None
    moe = cast(MoE, flying.layer.feed_forward)
    results = flying.rows.in_order(moe, flying.launched.wait())
    routed = moe.dropout(moe.weigh(results, flying.weights).view_as(half.x))
    half.x = half.x + flying.layer.scaled(summed([routed, *flying.shared]))
