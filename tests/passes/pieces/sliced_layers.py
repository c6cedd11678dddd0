# SPDX-License-Identifier: Apache-2.0
"""Stacks whose matrices are cut among ranks, which sum up what each makes: what a batch in parts does, and is refused.

Like `layers_without_drops`, whose `captured` gives the Dynamo graph of one. All take a batch of sequences, [B, TOKENS,
WIDTH]; every rank has all tokens and a slice of each expert. Only sizes that count rows are multiples of their number:
WIDTH is not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F

from farskip_compile._compat import collectives
from farskip_compile.comm import combine, dispatch
from tests.passes.pieces.layers_without_drops import EXPERTS, WIDTH, attention, grouped

SLICED = torch.arange(EXPERTS * WIDTH * WIDTH, dtype=torch.float64).view(EXPERTS, WIDTH, WIDTH) / 10


def summed(value: torch.Tensor) -> torch.Tensor:
    """Over all ranks."""
    return collectives.all_reduce(value, "sum", dist.group.WORLD)


def dense(x: torch.Tensor) -> torch.Tensor:
    """A feed-forward."""
    return F.linear(F.linear(x, SLICED[0]).relu(), SLICED[1])


def with_slots(x: torch.Tensor, room: Callable[[int], int] = lambda rows: rows) -> torch.Tensor:
    """Each expert has slots for as many rows as `room` says."""
    weights, chosen = x[:, :EXPERTS].softmax(-1).topk(2)
    rows = x.repeat_interleave(2, 0)
    given, receipt = dispatch(rows, chosen.flatten(), experts=EXPERTS, group=None, slots=room(x.shape[0]))
    back = combine(torch.bmm(torch.bmm(given, SLICED).relu(), SLICED), receipt)
    return (back.view(-1, 2, WIDTH) * weights.unsqueeze(-1)).sum(1)


def sorted_rows(x: torch.Tensor) -> torch.Tensor:
    """Rows in the order of their experts, in one grouped product after another; added up where they belong."""
    weights, chosen = x[:, :EXPERTS].softmax(-1).topk(2)
    expert, order = chosen.flatten().sort(stable=True)
    ends = expert.new_zeros(EXPERTS).index_add(0, expert, torch.ones_like(expert)).cumsum(0).to(torch.int32)
    product = torch._grouped_mm(x[order // 2].bfloat16(), SLICED.bfloat16(), offs=ends).relu()
    product = torch._grouped_mm(product, SLICED.bfloat16(), offs=ends).to(x.dtype)
    product = product * weights.flatten()[order].unsqueeze(-1)
    return torch.zeros_like(x).index_add(0, order // 2, product)


def back_in_place(x: torch.Tensor) -> torch.Tensor:
    """The inverse of the order brings rows back."""
    weights, chosen = x[:, :EXPERTS].softmax(-1).topk(2)
    order = chosen.flatten().argsort(stable=True)
    product = torch.bmm(x[order // 2].unsqueeze(1), SLICED[chosen.flatten()[order]]).squeeze(1)
    back = product[order.argsort()]
    return (back.view(-1, 2, WIDTH) * weights.unsqueeze(-1)).sum(1)


def each_expert(x: torch.Tensor) -> torch.Tensor:
    """Every expert computes every token."""
    scores = x[:, :EXPERTS].softmax(-1)
    weights = torch.zeros_like(scores).scatter(1, scores.topk(2).indices, 1.0) * scores
    products = torch.stack([dense(x) * weights[:, number, None] for number in range(EXPERTS)], 1)
    return products.sum(1)


Part = Callable[[torch.Tensor], torch.Tensor]


def stack_of(*feed_forwards: Part) -> Part:
    """Each feed-forward follows an attention; the outputs of both are summed over the ranks."""

    def stack(x: torch.Tensor) -> torch.Tensor:
        for feed_forward in feed_forwards:
            x = x + summed(attention(F.rms_norm(x, (WIDTH,))))
            x = x + summed(feed_forward(F.rms_norm(x, (WIDTH,)).flatten(0, 1)).view(x.shape))
        return x

    return stack


def with_load(x: torch.Tensor) -> torch.Tensor:
    """And how often each expert was chosen, of all tokens, which scales what leaves."""
    chosen = x.flatten(0, 1)[:, :EXPERTS].topk(2).indices
    share = F.one_hot(chosen, EXPERTS).sum((0, 1)).to(x.dtype).max()
    return stack_of(sorted_rows)(x) * share


def beside_exchanges(x: torch.Tensor) -> torch.Tensor:
    """Experts are on their ranks; the attention is in slices."""
    for _ in range(2):
        x = x + summed(attention(F.rms_norm(x, (WIDTH,))))
        x = x + grouped(F.rms_norm(x, (WIDTH,)).flatten(0, 1)).view(x.shape)
    return x


# What is refused


def with_drops(x: torch.Tensor) -> torch.Tensor:
    """Room for most rows."""
    return with_slots(x, lambda rows: rows * 7 // 8)


def across(x: torch.Tensor) -> torch.Tensor:
    """Tokens read those before them, of other sequences, too."""
    return dense(x.cumsum(0))


def next_to_each_other(x: torch.Tensor) -> torch.Tensor:
    """Rows of an expert are summed."""
    weights, chosen = x[:, :EXPERTS].softmax(-1).topk(2)
    order = chosen.flatten().argsort(stable=True)
    product = (x[order // 2] @ SLICED[0]).cumsum(0) * weights.flatten()[order].unsqueeze(-1)
    return torch.zeros_like(x).index_add(0, order // 2, product)


def summed_across(x: torch.Tensor) -> torch.Tensor:
    """Over the batch, before the ranks' sum."""
    return x * summed(x.sum(0))


def summed_in_order(x: torch.Tensor) -> torch.Tensor:
    """Rows are summed in the order of their experts: with rows of other tokens, where ranks choose otherwise."""
    _, chosen = x[:, :EXPERTS].topk(2)
    order = chosen.flatten().argsort(stable=True)
    rows = summed(x.repeat_interleave(2, 0)[order] @ SLICED[0])
    return rows[order.argsort()].view(-1, 2, WIDTH).sum(1)
