# SPDX-License-Identifier: Apache-2.0
"""Layers of experts without drops, as they are written in several places: what is cut by token, and what is refused.

All take tokens [T, WIDTH], of which the first entries are scores for experts, and choose two experts for each. Sizes
come from one exchange of counts. `captured` gives the Dynamo graph of one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import fx

from farskip_compile._compat import collectives
from farskip_compile.comm import combine, dispatch
from farskip_compile.compiler.ranks.fake import fake_ranks

RANKS, EXPERTS, WIDTH, TOKENS = 2, 4, 8, 12
Layer = Callable[[torch.Tensor], torch.Tensor]
Exchange = Callable[[torch.Tensor, list[int], list[int]], torch.Tensor]
WEIGHT = torch.arange(EXPERTS // RANKS * WIDTH * WIDTH, dtype=torch.float64).view(EXPERTS // RANKS, WIDTH, WIDTH) / 10


def captured(layer: Layer, tokens: int = TOKENS, batch: int | None = None) -> fx.GraphModule:
    """The Dynamo graph; of a stack that takes a batch."""
    found: list[fx.GraphModule] = []

    def keep(module: fx.GraphModule, _: object) -> object:
        found.append(module)
        return module.forward

    torch.compiler.reset()
    with fake_ranks(RANKS):
        generator = torch.Generator().manual_seed(0)
        sizes = [tokens, WIDTH] if batch is None else [batch, tokens, WIDTH]
        given = torch.randn(sizes, generator=generator, dtype=torch.float64)
        torch.compile(layer, backend=keep, fullgraph=True)(given)
    return found[0]


def exchange(rows: torch.Tensor, arriving: list[int], leaving: list[int]) -> torch.Tensor:
    """Over all ranks."""
    return collectives.all_to_all_single(rows, arriving, leaving, dist.group.WORLD)


def counted(experts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows for each expert, here; and from each rank for each expert of this one."""
    counts = experts.new_zeros(EXPERTS).scatter_add(0, experts, torch.ones_like(experts)).view(RANKS, -1)
    return counts, collectives.all_to_all_single(counts, None, None, dist.group.WORLD)


def ours(x: torch.Tensor) -> torch.Tensor:
    """As `farskip_compile.comm` does it: a product for each expert."""
    weights, experts = x[:, :EXPERTS].softmax(-1).topk(2)
    rows = x.repeat_interleave(2, 0)
    given, receipt = dispatch(rows, experts.flatten(), experts=EXPERTS, group=dist.group.WORLD)
    back = combine([one @ WEIGHT[place] for place, one in enumerate(given)], receipt)
    return (back.view(x.shape[0], 2, WIDTH) * weights.unsqueeze(-1)).sum(1)


def grouped(x: torch.Tensor, back_in_place: bool = True) -> torch.Tensor:
    """Rows in the order of the local experts, by a sort of what arrives; added up where they belong."""
    weights, experts = x[:, :EXPERTS].softmax(-1).topk(2)
    counts, theirs = counted(experts.flatten())
    sent, received = torch.stack([counts.sum(1), theirs.sum(1)]).tolist()
    order = experts.flatten().argsort(stable=True)
    arrived = exchange(x[order // 2], received, sent)
    local = torch.arange(EXPERTS // RANKS).repeat(RANKS).repeat_interleave(theirs.flatten(), output_size=sum(received))
    places = local.argsort(stable=True)
    ends = theirs.sum(0).cumsum(0).to(torch.int32)
    product = torch._grouped_mm(arrived[places].bfloat16(), WEIGHT.bfloat16(), offs=ends).to(x.dtype)
    result = torch.empty_like(product)
    result[places] = product
    returned = exchange(result, sent, received) * weights.flatten()[order].unsqueeze(-1)
    if not back_in_place:
        return returned.view(x.shape[0], 2, WIDTH).sum(1)
    return torch.zeros_like(x).index_add(0, order // 2, returned)


def with_load(x: torch.Tensor) -> torch.Tensor:
    """And an auxiliary loss, of all tokens together, that everything is scaled by."""
    scores = x[:, :EXPERTS]
    share = F.one_hot(scores.topk(2).indices, EXPERTS).sum((0, 1)).to(x.dtype) / x.shape[0]
    return grouped(x) * (share * scores.softmax(-1).mean(0)).sum()


def two_layers(x: torch.Tensor) -> torch.Tensor:
    """The second reads nothing but what the first one gives, token by token."""
    x = x + grouped(x)
    return x + grouped(F.rms_norm(x, (WIDTH,)))


def two_layers_that_mix(x: torch.Tensor) -> torch.Tensor:
    """Between them each token reads those before it."""
    x = x + grouped(x)
    return x + grouped(x.cumsum(0))


def of_no_known_size(x: torch.Tensor) -> torch.Tensor:
    """Nobody says how many rows come back."""
    _, experts = x[:, :EXPERTS].topk(2)
    given, receipt = dispatch(x.repeat_interleave(2, 0), experts.flatten(), experts=EXPERTS, group=dist.group.WORLD)
    return combine(given, receipt)


def by_load(x: torch.Tensor) -> torch.Tensor:
    """How many tokens an expert has decides what it makes of them."""
    weights, experts = x[:, :EXPERTS].softmax(-1).topk(2)
    rows = x.repeat_interleave(2, 0)
    given, receipt = dispatch(rows, experts.flatten(), experts=EXPERTS, group=dist.group.WORLD)
    back = combine([one - one.sum(0, keepdim=True) for one in given], receipt)
    return (back.view(x.shape[0], 2, WIDTH) * weights.unsqueeze(-1)).sum(1)


def next_to_each_other(x: torch.Tensor) -> torch.Tensor:
    """Tokens read their neighbours where they arrive."""
    weights, experts = x[:, :EXPERTS].softmax(-1).topk(2)
    rows = x.repeat_interleave(2, 0)
    given, receipt = dispatch(rows, experts.flatten(), experts=EXPERTS, group=dist.group.WORLD)
    back = combine([one.cumsum(0) for one in given], receipt)
    return (back.view(x.shape[0], 2, WIDTH) * weights.unsqueeze(-1)).sum(1)


def not_put_back(x: torch.Tensor) -> torch.Tensor:
    """What comes back is taken as it comes."""
    return grouped(x, back_in_place=False)


def noisy(x: torch.Tensor) -> torch.Tensor:
    """Experts scale entries at random."""
    weights, experts = x[:, :EXPERTS].softmax(-1).topk(2)
    rows = x.repeat_interleave(2, 0)
    given, receipt = dispatch(rows, experts.flatten(), experts=EXPERTS, group=dist.group.WORLD)
    back = combine([one * torch.rand_like(one) for one in given], receipt)
    return (back.view(x.shape[0], 2, WIDTH) * weights.unsqueeze(-1)).sum(1)


def written_behind(x: torch.Tensor) -> torch.Tensor:
    """What experts read is written to later."""
    x = x * 1
    out = grouped(x)
    x.add_(1)
    return out + x


# Stacks on a batch of sequences, [B, TOKENS, WIDTH]


def attention(x: torch.Tensor) -> torch.Tensor:
    """Of one head, within each sequence."""
    heads = x.unsqueeze(1)
    return F.scaled_dot_product_attention(heads, heads, heads, is_causal=True).squeeze(1)


def stack(x: torch.Tensor) -> torch.Tensor:
    """An attention, experts, and once more."""
    for _ in range(2):
        x = x + attention(F.rms_norm(x, (WIDTH,)))
        x = x + grouped(F.rms_norm(x, (WIDTH,)).flatten(0, 1)).view(x.shape)
    return x


def stack_with_loss(x: torch.Tensor) -> torch.Tensor:
    """A mean over everything at the end."""
    return stack(x).square().mean()


def stack_that_joins(x: torch.Tensor) -> torch.Tensor:
    """Each sequence reads the mean of all of them."""
    return stack(x - x.mean(0))


def stack_across(x: torch.Tensor) -> torch.Tensor:
    """The attention goes across sequences."""
    x = x + attention(x.transpose(0, 1)).transpose(0, 1)
    return x + grouped(x.flatten(0, 1)).view(x.shape)


def stack_with_room(x: torch.Tensor) -> torch.Tensor:
    """Experts have room for a fixed number of rows."""
    rows = x.flatten(0, 1)
    chosen = rows[:, :EXPERTS].argmax(-1)
    given, receipt = dispatch(rows, chosen, experts=EXPERTS, group=dist.group.WORLD, slots=8)
    return x + combine(given, receipt).view(x.shape)
