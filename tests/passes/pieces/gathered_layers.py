# SPDX-License-Identifier: Apache-2.0
"""Layers of experts whose tokens are gathered on all ranks: what is cut by token, and what is refused.

Like `layers_without_drops`, whose `captured` gives the Dynamo graph of one. Each rank runs its own experts, and the
sums over ranks are scattered. Only sizes that count rows are multiples of their number: WIDTH is not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F

from farskip_compile._compat import collectives
from farskip_compile.comm import combine, dispatch
from tests.passes.pieces.layers_without_drops import EXPERTS, RANKS, WEIGHT, WIDTH, attention

HELD = EXPERTS // RANKS


def gather(value: torch.Tensor) -> torch.Tensor:
    """The rows of all ranks."""
    return collectives.all_gather(value, 0, dist.group.WORLD)


def scatter(value: torch.Tensor) -> torch.Tensor:
    """The sum over ranks, of this rank's rows."""
    return collectives.reduce_scatter(value, "sum", 0, dist.group.WORLD)


def mine(chosen: torch.Tensor) -> torch.Tensor:
    """This rank's number of an expert: others' are below 0, or too large."""
    return chosen - dist.get_rank() * HELD


# As models of ours: tokens are gathered, each rank routes them all


def with_room(x: torch.Tensor, room: Callable[[int], int] = lambda rows: rows) -> torch.Tensor:
    """Slots for as many rows as `room` says."""
    tokens = gather(x)
    weights, chosen = tokens[:, :EXPERTS].softmax(-1).topk(2)
    rows = tokens.repeat_interleave(2, 0)
    given, receipt = dispatch(rows, mine(chosen.flatten()), experts=HELD, group=None, slots=room(tokens.shape[0]))
    back = combine(torch.bmm(given, WEIGHT), receipt)
    return scatter((back.view(-1, 2, WIDTH) * weights.unsqueeze(-1)).sum(1))


def with_drops(x: torch.Tensor) -> torch.Tensor:
    """Room for most rows, not for all."""
    return with_room(x, lambda rows: rows * 7 // 8)


# As engines: the choice is gathered, too


def sorted_rows(x: torch.Tensor, taken: Callable[[int], int] = lambda rows: rows) -> torch.Tensor:
    """Rows in the order of the local experts, those of other ranks last; added up where they belong."""
    weights, chosen = x[:, :EXPERTS].softmax(-1).topk(2)
    tokens, chosen, weights = gather(x), gather(chosen), gather(weights)
    local = mine(chosen.flatten())
    local = local.where((local >= 0) & (local < HELD), HELD)
    expert, order = local.sort(stable=True)
    rows = taken(order.shape[0])
    expert, order = expert[:rows], order[:rows]
    ends = expert.new_zeros(HELD + 1).index_add(0, expert, torch.ones_like(expert))[:HELD].cumsum(0).to(torch.int32)
    product = torch._grouped_mm(tokens[order // 2].bfloat16(), WEIGHT.bfloat16(), offs=ends).to(x.dtype)
    product = (product * weights.flatten()[order].unsqueeze(-1)).masked_fill((expert == HELD).unsqueeze(-1), 0)
    return scatter(torch.zeros_like(tokens).index_add(0, order // 2, product))


def of_some_rows(x: torch.Tensor) -> torch.Tensor:
    """No more rows than a rank gets in the mean."""
    return sorted_rows(x, lambda rows: rows // 2)


# Several


def two_layers(x: torch.Tensor) -> torch.Tensor:
    """The second reads nothing but what the first one gives, token by token."""
    x = x + with_room(x)
    return x + sorted_rows(F.rms_norm(x, (WIDTH,)))


def two_layers_that_mix(x: torch.Tensor) -> torch.Tensor:
    """Between them each token reads those before it."""
    x = x + sorted_rows(x)
    return x + with_room(x.cumsum(0))


def beside_a_sequence(x: torch.Tensor) -> torch.Tensor:
    """An attention over a sequence that is spread over the ranks comes before."""
    whole = attention(gather(x).unsqueeze(0)).squeeze(0)
    return x + with_room(x + scatter(whole))


def sequence(x: torch.Tensor) -> torch.Tensor:
    """Nothing but such an attention, after a choice."""
    weights, _ = x[:, :EXPERTS].softmax(-1).topk(2)
    return scatter(attention(gather(x * weights.sum(-1, keepdim=True)).unsqueeze(0)).squeeze(0))


# What is refused


def next_to_each_other(x: torch.Tensor) -> torch.Tensor:
    """Tokens read those before them on their way."""
    return with_room_of(x, lambda tokens: tokens.cumsum(0))


def with_room_of(x: torch.Tensor, changed: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """The gathered tokens are changed."""
    tokens = changed(gather(x))
    weights, chosen = tokens[:, :EXPERTS].softmax(-1).topk(2)
    local = mine(chosen)
    share = (weights * ((local >= 0) & (local < HELD))).sum(-1, keepdim=True)
    return scatter(tokens * share)


def with_attention(x: torch.Tensor) -> torch.Tensor:
    """All tokens meet."""
    return with_room_of(x, lambda tokens: attention(tokens.unsqueeze(0)).squeeze(0))


def with_load(x: torch.Tensor) -> torch.Tensor:
    """How many tokens of all ranks chose an expert is read besides."""
    tokens = gather(x)
    weights, chosen = tokens[:, :EXPERTS].softmax(-1).topk(2)
    share = F.one_hot(chosen, EXPERTS).sum((0, 1)).to(x.dtype) / tokens.shape[0]
    return scatter(tokens * weights.sum(-1, keepdim=True)) * share.max()


def with_a_sum(x: torch.Tensor) -> torch.Tensor:
    """A collective in between."""
    return with_room_of(x, lambda tokens: collectives.all_reduce(tokens, "sum", dist.group.WORLD))


def of_other_rows(x: torch.Tensor) -> torch.Tensor:
    """Of each token two rows are scattered."""
    return with_room_of(x, lambda tokens: tokens.repeat_interleave(2, 0))


# Stacks on a batch of sequences, [B, TOKENS, WIDTH]


def stack(x: torch.Tensor) -> torch.Tensor:
    """An attention, experts, and once more."""
    for layer in (with_room, sorted_rows):
        x = x + attention(F.rms_norm(x, (WIDTH,)))
        x = x + layer(F.rms_norm(x, (WIDTH,)).flatten(0, 1)).view(x.shape)
    return x


def stack_with_drops(x: torch.Tensor) -> torch.Tensor:
    """Room for most rows, not for all."""
    return x + with_drops(attention(x).flatten(0, 1)).view(x.shape)
