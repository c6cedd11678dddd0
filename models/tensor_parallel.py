# SPDX-License-Identifier: Apache-2.0
"""The borders of matrices sharded among ranks: what is gathered before them and reduced after them.

In:    `gather_stream` gets the normed residual stream of this rank, `reduce_partial` this rank's share of a sub-block.
Out:   the whole [B, T, D] before column-sharded matrices; the sub-block's term of this rank's stream.
Never: sums weights' gradients over ranks, which is up to the training loop (see below).

                          residual stream of a rank        before a sub-block   after it
    no group              [B, T, D]                        nothing              nothing
    tensor parallelism    [B, T, D], the same on all       nothing              all-reduce
    and sequence parallel [B * T / ranks, D], its tokens   all-gather           reduce-scatter

With sequence parallelism the norms, the residual adds and the memory of the stream are divided among the ranks, and
the bytes on the wire are unchanged: an all-reduce is a reduce-scatter and an all-gather. Tokens are counted sequence
after sequence, so that each rank has one contiguous slice of all B * T of them, as in serving engines; Megatron lays
the stream out as [T, B, D] and shards T, which is the same for one sequence. As in Megatron, the embedding looks up
local tokens only, and the stream is gathered once more after the final norm, before the language-model head.

Gradients. Every collective's backward is its adjoint: all-reduce and all-reduce, all-gather and reduce-scatter. So the
loss counts as summed over the ranks. With `tp` ranks that all compute the same loss, scale it by `1 / tp`. Then
    a slice of a matrix           has the slice of the one-process gradient;
    a whole (replicated) weight   has a share of it on each rank, to be summed over the group: norms, routers, embedding
                                  and head, latent projections. Without sequence parallelism the shares come from the
                                  slices that the weight feeds, with it also from the rank's own tokens.
"""

from __future__ import annotations

import torch

from farskip_compile._compat import collectives
from farskip_compile.errors import ParallelismError, refuse
from farskip_compile.models.config import ParallelConfig


def reduce_partial(partial: torch.Tensor, parallel: ParallelConfig) -> torch.Tensor:
    """Sum of all ranks' shares [B, T, D]: whole, or this rank's tokens [B * T / ranks, D] of it."""
    if parallel.tp_group is None:
        return partial
    if parallel.sequence_parallel:
        return collectives.reduce_scatter(partial.flatten(0, 1), "sum", 0, parallel.tp_group)
    return collectives.all_reduce(partial, "sum", parallel.tp_group)


def gather_stream(h: torch.Tensor, length: int, parallel: ParallelConfig) -> torch.Tensor:
    """Values of this rank's tokens -> values of all tokens, [B, T, D] with T = `length`."""
    if parallel.tp_group is None or not parallel.sequence_parallel:
        return h
    return collectives.all_gather(h, 0, parallel.tp_group).unflatten(0, (-1, length))


def own_tokens(ids: torch.Tensor, parallel: ParallelConfig) -> torch.Tensor:
    """Token ids [B, T] -> the ids of this rank's slice of the stream: all of them, or [B * T / ranks].

    Raises:
        ParallelismError: the tokens can't be divided among the ranks.
    """
    group = parallel.tp_group
    if group is None or not parallel.sequence_parallel:
        return ids
    if ids.numel() % group.size():
        refuse(
            ParallelismError,
            f"{ids.numel()} tokens can't be divided among {group.size()} ranks",
            way_out="pad the batch, so that sequence parallelism gets as many tokens on each rank",
        )
    return ids.flatten().chunk(group.size())[group.rank()]
