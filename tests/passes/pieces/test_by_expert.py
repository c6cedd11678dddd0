# SPDX-License-Identifier: Apache-2.0
"""Exchanges without drops in pieces by expert: what both ends can tell apart is cut, everything else refused by name.

That results are the same on real ranks is shown in tests/distributed/test_pieces_ranks.py.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import fx

from farskip_compile._compat import collectives
from farskip_compile.comm import combine, dispatch
from farskip_compile.compiler.ranks.fake import fake_ranks
from farskip_compile.passes.graph import comms, ops
from farskip_compile.passes.graph.graph_snapshot import GraphSnapshot
from farskip_compile.passes.pieces.blocks import exchanges_of
from farskip_compile.passes.pieces.by_expert import cut_by_expert
from farskip_compile.passes.pieces.notes import is_piece, noted
from farskip_compile.verify.tokens.by_expert import verify_by_expert

RANKS, EXPERTS, WIDTH = 2, 8, 3
Layer = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def captured(layer: Layer) -> fx.GraphModule:
    """The Dynamo graph of `layer` of rows and the expert of each."""
    found: list[fx.GraphModule] = []

    def keep(module: fx.GraphModule, _: Any) -> Any:
        found.append(module)
        return module.forward

    torch.compiler.reset()
    with fake_ranks(RANKS):
        torch.compile(layer, backend=keep, fullgraph=True)(torch.randn(6, WIDTH), torch.arange(6) % EXPERTS)
    return found[0]


def ours(rows: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    """As `farskip_compile.comm` does it."""
    given, receipt = dispatch(rows, experts, experts=EXPERTS, group=dist.group.WORLD)
    return combine([one * (place + 1) for place, one in enumerate(given)], receipt)


def by_hand(
    rows: torch.Tensor,
    experts: torch.Tensor,
    *,
    counted: Callable[[torch.Tensor], torch.Tensor] = lambda counts: counts,
    order: Callable[[list[Any]], list[Any]] = lambda blocks: blocks,
    add: Callable[[list[int]], int] = sum,
    exchanged: list[int] | None = None,
    written: bool = False,
) -> torch.Tensor:
    """As others may write it: counts read one tensor after the other, sums by `+`, no sorting by expert."""
    group = dist.group.WORLD
    counts = experts.new_zeros(EXPERTS).scatter_add(0, experts, torch.ones_like(experts)).view(RANKS, -1)
    given = counted(counts) if exchanged is None else counted(counts).flatten()
    theirs = collectives.all_to_all_single(given, exchanged, exchanged, group).view(RANKS, -1)
    sent, received = [row.tolist() for row in counts], theirs.tolist()
    if written:
        counts.add_(1)
    place = experts.argsort()
    splits = [add(one) for one in received], [add(one) for one in sent]
    arrived = collectives.all_to_all_single(rows[place], *splits, group)
    blocks = [block * (1 + number) for number, block in enumerate(arrived.split([n for one in received for n in one]))]
    back = collectives.all_to_all_single(torch.cat(order(blocks)), *splits[::-1], group)
    return torch.zeros_like(back).index_copy(0, place, back)


def plus(numbers: list[int]) -> int:
    """Nested additions."""
    total = numbers[0]
    for number in numbers[1:]:
        total = operator.add(total, number)
    return total


def cut(module: fx.GraphModule, pieces: int) -> tuple[str, ...]:
    """Cut and verify; why some stay whole."""
    before = GraphSnapshot(module.graph)
    refused = cut_by_expert(module.graph, lambda _: pieces)
    module.graph.lint()
    verify_by_expert(module.graph, before)
    module.recompile()
    return tuple(map(str, refused))


def sized(module: fx.GraphModule) -> list[fx.Node]:
    """Exchanges whose sizes data decides."""
    found = ops.calls(module.graph, comms.is_all_to_all)
    return [node for node in found if isinstance(node.args[1][0], fx.Node)]  # type: ignore[index]


@pytest.mark.parametrize("layer", [ours, by_hand, lambda x, e: by_hand(x, e, add=plus)], ids=["ours", "others", "plus"])
@pytest.mark.parametrize("pieces", [2, 3, 4])
def test_each_piece_is_an_exchange_of_some_experts(layer: Layer, pieces: int) -> None:
    module = captured(layer)
    assert cut(module, pieces) == ()
    launched = sized(module)
    assert len(launched) == 2 * pieces
    assert all(is_piece(node) and noted(node) == str(pieces) for node in launched)
    # all dispatches come before the first combine
    place = {node: number for number, node in enumerate(module.graph.nodes)}
    products = [place[node] for node in module.graph.nodes if ops.op_name(node) == "mul"]
    assert place[launched[pieces - 1]] < min(products) < max(products) < place[launched[pieces]]


def test_more_pieces_than_experts_are_refused() -> None:
    module = captured(ours)
    code = module.code
    assert cut(module, 5) == ("there are fewer experts on each rank than pieces: 4",)
    assert module.code == code
    assert {noted(node) for node in sized(module)} == {"", "there are fewer experts on each rank than pieces: 4"}


UNKNOWN = {
    "counts of something else": lambda x, e: by_hand(x, e, counted=lambda counts: counts + 0),
    "counts in another order": lambda x, e: by_hand(x, e, counted=lambda counts: counts.flip(0)),
    "more counts to one rank than to the other": lambda x, e: by_hand(x, e, exchanged=[3, 5]),
    "counts that are written to": lambda x, e: by_hand(x, e, written=True),
}
OTHERWISE = {
    "blocks in another order": lambda x, e: by_hand(x, e, order=lambda blocks: blocks[::-1]),
    "a block twice": lambda x, e: by_hand(x, e, order=lambda blocks: [blocks[0], *blocks[:-1]]),
    "blocks put together before": lambda x, e: by_hand(x, e, order=lambda blocks: [torch.cat(blocks[:2]), *blocks[2:]]),
}


@pytest.mark.parametrize("layer", UNKNOWN.values(), ids=UNKNOWN)
def test_sizes_that_the_other_end_may_not_have_are_refused(layer: Layer) -> None:
    assert "its sizes are no sums of counts that both ends have" in cut(captured(layer), 2)[0]


@pytest.mark.parametrize("layer", OTHERWISE.values(), ids=OTHERWISE)
def test_rows_that_go_back_otherwise_are_refused(layer: Layer) -> None:
    assert "it puts together what goes back otherwise than by rank and expert" in cut(captured(layer), 2)[0]


def test_what_arrives_may_be_read_in_blocks_alone() -> None:
    def layer(rows: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        given, receipt = dispatch(rows, experts, experts=EXPERTS, group=dist.group.WORLD)
        return combine(given, receipt) + given[0].sum()

    def whole(rows: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        counts = experts.new_zeros(EXPERTS).scatter_add(0, experts, torch.ones_like(experts))
        theirs = collectives.all_to_all_single(counts, None, None, dist.group.WORLD)
        sent, received = ([sum(row) for row in one.view(RANKS, -1).tolist()] for one in (counts, theirs))
        arrived = collectives.all_to_all_single(rows[experts.argsort()], received, sent, dist.group.WORLD)
        return collectives.all_to_all_single(arrived * 2, sent, received, dist.group.WORLD)

    assert cut(captured(layer), 2) == ()  # a block may have several readers
    assert "it reads what arrives otherwise than in blocks" in cut(captured(whole), 2)[0]


def test_a_dispatch_without_a_way_back_is_refused() -> None:
    def layer(rows: torch.Tensor, experts: torch.Tensor) -> list[torch.Tensor]:
        return dispatch(rows, experts, experts=EXPERTS, group=dist.group.WORLD)[0]

    assert "nothing comes back with the same sizes" in cut(captured(layer), 2)[0]


def test_how_many_is_asked_for_each() -> None:
    def layer(rows: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        return ours(ours(rows, experts), experts)

    module = captured(layer)
    wanted = iter([2, 1])
    cut_by_expert(module.graph, lambda _: next(wanted))
    assert [noted(node) for node in sized(module)] == ["2"] * 4 + [""] * 2
    assert [one.experts for one in exchanges_of(captured(layer).graph)[0]] == [EXPERTS // RANKS] * 2
