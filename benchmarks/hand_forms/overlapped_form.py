# SPDX-License-Identifier: Apache-2.0
"""The FarSkip form of a decoder with communication overlapped by hand: a baseline of the compiled model.

In:    a plain decoder; its modules are used, not copied.
Out:   the function of `FarSkipForm` with full connectivity, forward and backward, in eager mode.
Never: computes anything that `FarSkipForm` does not, or adds in another order, unless reductions are merged.

Every collective is launched as early, and waited for as late, as the wiring allows within a layer or two. The work in
between is written down, with its source, beside the code:
    expert parallelism, all-to-all              `overlapped_all_to_all.py`
    tensor parallelism, all-reduce              `overlapped_all_reduce.py`
    launches, waits and the order of backward   `async_collectives.py`
Prefill, training, and decode steps with a cache take the same way. The combine of the last layer is waited for at
once, since the head reads it.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from farskip_compile.errors import ConfigError, ParallelismError
from farskip_compile.models.cache import KeyValueCache
from farskip_compile.models.decoder import Decoder, DecoderLayer
from hand_forms.async_collectives import Streams
from hand_forms.overlapped_all_reduce import all_reduce_layer
from hand_forms.overlapped_all_to_all import all_to_all_layer


class OverlappedForm(nn.Module):
    """Token ids [B, T] -> logits [B, T, vocabulary], in the FarSkip wiring, overlapped by hand (arXiv 2511.11505).

    In training with dropout, masks are drawn in another order than in `FarSkipForm`. Activation checkpoints around it
    would communicate once more in backward, in the order of the recomputed forward.

    Args:
        decoder: a plain model, on one process or with tensor or expert parallelism, the latter by all-to-all.
        merge_reductions: under tensor parallelism, one all-reduce for the attention and the shared experts together,
            as in `FarSkipForm`. Equal up to rounding.

    Raises:
        ConfigError: merged reductions without tensor parallelism.
        ParallelismError: a parallelism that nobody has published an overlapped schedule for.
    """

    def __init__(self, decoder: Decoder, *, merge_reductions: bool = False) -> None:
        super().__init__()
        parallel = decoder.parallel
        if merge_reductions and parallel.tp_group is None:
            raise ConfigError(
                "merge_reductions needs tensor parallelism",
                way_out="without it the attention's output is not a partial sum, and nothing is reduced",
            )
        if parallel.sequence_parallel or (parallel.tp_group is not None and parallel.ep_group is not None):
            raise ParallelismError(
                "the overlapped form knows tensor or expert parallelism, not both, and no sequence parallelism",
                way_out="FarSkipForm runs them all; torch.compile with the farskip backend overlaps them all",
            )
        if parallel.ep_group is not None and parallel.ep_mode == "allgather":
            raise ParallelismError(
                "the overlapped form sends tokens to experts by all-to-all, not by all-gather",
                way_out='ParallelConfig(ep_mode="padded") or "dropless"; or FarSkipForm',
            )
        self.decoder = decoder
        self.merge_reductions = merge_reductions

    def forward(self, ids: torch.Tensor, cache: KeyValueCache | None = None) -> torch.Tensor:
        """Map token ids [B, T] to logits [B, T, vocabulary]; with a cache as in `Decoder.forward`."""
        x = self.decoder.embed(ids)
        rope = self.decoder.positions(x, ids, cache)
        streams = Streams(x)
        last = len(self.decoder.layers) - 1
        for index, module in enumerate(self.decoder.layers):
            layer = cast(DecoderLayer, module)
            if self.decoder.parallel.tp_group is None:
                streams = all_to_all_layer(layer, streams, rope)
            else:
                streams = all_reduce_layer(layer, streams, rope, last=index == last, merge=self.merge_reductions)
        if cache is not None:
            cache.advance(ids.shape[1])
        return self.decoder.head(streams.x(), ids.shape[1])  # x: here nothing may be left out
