# SPDX-License-Identifier: Apache-2.0
"""The plain decoder with each exchange of tokens in chunks, by hand: the baseline of `pieces` under "none".

In:    a plain decoder under expert parallelism by all-to-all; its modules are used, not copied.
Out:   the decoder's function, forward and backward, in eager mode.
Never: rewires anything: every sub-block reads the whole stream, as in the plain model.

Published implementations of overlapped expert parallelism in training (chunked all-to-all, for instance in Megatron)
cut a layer's exchange so that one chunk is on its way while experts compute on another. Chunks are local experts here,
so that padded exchanges drop the same rows, and each expert's product stays whole:

    1. attention, norm, router
    2. launch the dispatch of every chunk
    3. shared experts                            dispatches in flight
    4. for each chunk: wait, experts, launch its combine
    5. wait for the combines; weights, sum

The last combine has nothing to hide behind, and the first dispatch has the shared experts alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from farskip_compile.errors import ConfigError, ParallelismError
from farskip_compile.models.cache import KeyValueCache
from farskip_compile.models.decoder import Decoder, DecoderLayer
from farskip_compile.models.mlp import MLP
from farskip_compile.models.moe import MoE, summed
from farskip_compile.models.rope import Rope
from hand_forms.async_collectives import BackwardOrder, Launched, launch_all_to_all

Counts = Sequence[Sequence[int]]
"""Numbers of rows, by the other rank and the expert of the receiving rank."""


class ChunkedForm(nn.Module):
    """A module that maps token ids [B, T] to logits [B, T, vocabulary].

    Args:
        decoder: a plain model with experts spread over ranks.
        chunks: of each exchange, at most as many as a rank has experts.

    Raises:
        ConfigError: fewer experts than chunks.
        ParallelismError: no expert parallelism by all-to-all, or another one besides.
    """

    def __init__(self, decoder: Decoder, *, chunks: int = 2) -> None:
        super().__init__()
        refuse_unless_all_to_all(decoder)
        experts = decoder.config.experts // decoder.parallel.ep_size
        if not 1 <= chunks <= experts:
            raise ConfigError(f"{experts} experts on each rank make no {chunks} chunks", way_out=f"1 to {experts}")
        self.decoder = decoder
        self.chunks = chunks

    def forward(self, ids: torch.Tensor, cache: KeyValueCache | None = None) -> torch.Tensor:
        """Map token ids [B, T] to logits [B, T, vocabulary]; with a cache as in `Decoder.forward`."""
        x = self.decoder.embed(ids)
        rope = self.decoder.positions(x, ids, cache)
        for module in self.decoder.layers:
            layer = cast(DecoderLayer, module)
            dense = isinstance(layer.feed_forward, MLP) or layer.feed_forward_norm is None
            x = layer(x, rope) if dense else self._moe(layer, x, rope)
        if cache is not None:
            cache.advance(ids.shape[1])
        return self.decoder.head(x, ids.shape[1])

    def _moe(self, layer: DecoderLayer, x: torch.Tensor, rope: Rope) -> torch.Tensor:
        moe = cast(MoE, layer.feed_forward)
        x = x + layer.scaled(layer.attention(layer.attention_norm(x), rope))
        h = layer.norm_before_feed_forward(x)
        tokens = h.flatten(0, 1)
        rows, expert_of_row, weights = moe.assign(tokens)
        sent = permuted(moe, rows, expert_of_row, tokens)
        local = moe.experts.local_experts
        ends = [round(local * chunk / self.chunks) for chunk in range(self.chunks + 1)]
        chunks = [ExpertChunk(moe, sent, low, high) for low, high in pairwise(ends)]
        dispatched = [chunk.dispatch() for chunk in chunks]
        shared = moe.shared(h)
        combined = [chunk.combine(flight.wait()) for chunk, flight in zip(chunks, dispatched, strict=True)]
        parts = [chunk.by_rank(flight.wait()) for chunk, flight in zip(chunks, combined, strict=True)]
        back = torch.cat([part for per_rank in zip(*parts, strict=True) for part in per_rank])
        routed = moe.dropout(moe.weigh(sent.in_order(moe, back), weights).view_as(h))
        return x + layer.scaled(summed([routed, *shared]))


def refuse_unless_all_to_all(decoder: Decoder) -> None:
    """Raise a `ParallelismError` unless the only parallelism is that of experts by all-to-all."""
    parallel = decoder.parallel
    if parallel.ep_group is None or parallel.tp_group is not None or parallel.ep_mode == "allgather":
        raise ParallelismError(
            "this form knows expert parallelism by all-to-all, and nothing besides",
            way_out='ParallelConfig(ep_group=..., ep_mode="padded") or "dropless"',
        )


@dataclass(frozen=True)
class Permuted:
    """Rows sorted by rank and expert."""

    blocks: Sequence[torch.Tensor]
    """The blocks, by rank and expert."""
    place: torch.Tensor
    """The place of each row in the sorted blocks, or the row of each place."""
    sent: Counts
    received: Counts

    def in_order(self, moe: MoE, back: torch.Tensor) -> torch.Tensor:
        """Return the results `back` in the order of the original rows; zeros for dropped rows."""
        if moe.experts.dropless:
            return torch.zeros_like(back).index_copy(0, self.place, back)
        return F.pad(back, (0, 0, 0, 1)).index_select(0, self.place)


def permuted(moe: MoE, rows: torch.Tensor, expert_of_row: torch.Tensor, tokens: torch.Tensor) -> Permuted:
    """Return the copies of `tokens` [N, D], `rows` [N * k, D], sorted by the expert of each row."""
    return _dropless(moe, rows, expert_of_row) if moe.experts.dropless else _padded(moe, rows, expert_of_row, tokens)


def _padded(moe: MoE, rows: torch.Tensor, expert_of_row: torch.Tensor, tokens: torch.Tensor) -> Permuted:
    experts, slots = moe.experts.experts, moe.slots(tokens.shape[0])
    local = moe.experts.local_experts
    chosen = (expert_of_row.unsqueeze(-1) == torch.arange(experts, device=rows.device)).long()  # [R, E]
    slot = (chosen.cumsum(0) * chosen).sum(-1) - 1  # [R]: how many earlier rows chose the same expert
    place = torch.where(slot < slots, expert_of_row * slots + slot, experts * slots)  # [R]; last: dropped
    buffer = rows.new_zeros(experts * slots + 1, rows.shape[-1]).index_copy(0, place, rows)[:-1]
    counts = [[slots] * local] * (experts // local)
    return Permuted(buffer.split(slots), place, counts, counts)


def _dropless(moe: MoE, rows: torch.Tensor, expert_of_row: torch.Tensor) -> Permuted:
    counts = expert_of_row.new_zeros(moe.experts.experts).scatter_add(0, expert_of_row, torch.ones_like(expert_of_row))
    order = expert_of_row.argsort(stable=True)  # [R]
    theirs = torch.empty_like(counts)
    dist.all_to_all_single(theirs, counts, group=moe.experts.ep_group)
    sent, received = torch.stack([counts, theirs]).unflatten(1, (-1, moe.experts.local_experts)).tolist()
    blocks = rows.index_select(0, order).split([count for per_rank in sent for count in per_rank])
    return Permuted(blocks, order, sent, received)


class ExpertChunk:
    """The exchange of rows with the local experts `low` to `high`, there and back."""

    def __init__(self, moe: MoE, permuted: Permuted, low: int, high: int) -> None:
        self.experts, self.low, self.high = moe.experts, low, high
        local = moe.experts.local_experts
        starts = range(0, len(permuted.blocks), local)
        self.blocks = [permuted.blocks[start + expert] for start in starts for expert in range(low, high)]
        self.sent = [sum(counts[low:high]) for counts in permuted.sent]
        self.counts = [list(counts[low:high]) for counts in permuted.received]
        self.received = [sum(counts) for counts in self.counts]

    def dispatch(self) -> Launched:
        """Launch the rows of the chunk."""
        return launch_all_to_all(
            torch.cat(self.blocks), self.received, self.sent, self.experts.ep_group, wait_at=BackwardOrder.DISPATCH
        )

    def combine(self, rows: torch.Tensor) -> Launched:
        """Run the experts on rows that have arrived, and launch the results."""
        arrived = rows.split([count for per_rank in self.counts for count in per_rank])
        step = self.high - self.low
        given = [torch.cat(arrived[expert::step]) for expert in range(step)]
        if self.experts.dropless:
            results = [self._one(self.low + expert, one) for expert, one in enumerate(given)]
        else:
            weights = (each[self.low : self.high] for each in (self.experts.gate, self.experts.up, self.experts.down))
            gate, up, down = weights
            stacked = torch.stack(given)
            results = list(torch.bmm(F.silu(torch.bmm(stacked, gate)) * torch.bmm(stacked, up), down))
        by_expert = [one.split([counts[e] for counts in self.counts]) for e, one in enumerate(results)]
        back = torch.cat([part for per_rank in zip(*by_expert, strict=True) for part in per_rank])
        return launch_all_to_all(back, self.sent, self.received, self.experts.ep_group, wait_at=BackwardOrder.COMBINE)

    def by_rank(self, rows: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return the results of each rank."""
        return rows.split(self.sent)

    def _one(self, expert: int, rows: torch.Tensor) -> torch.Tensor:
        gate, up, down = (each[expert] for each in (self.experts.gate, self.experts.up, self.experts.down))
        return (F.silu(rows @ gate) * (rows @ up)) @ down
