# SPDX-License-Identifier: Apache-2.0
"""Exchanges by all-gather in pieces by token: what is cut, in which order, and what is refused, by name.

That results are the same on real ranks is shown in tests/distributed/test_pieces_by_token_ranks.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from torch import fx

from farskip_compile.errors import VerificationError
from farskip_compile.passes.graph import comms, ops, user_calls
from farskip_compile.passes.graph.walk import walk_back
from farskip_compile.passes.pieces import cut_earlier
from farskip_compile.passes.pieces.notes import is_piece, noted_along
from farskip_compile.passes.pieces.rules import NotSeparableError
from farskip_compile.passes.pieces.tokens.region import regions_of
from tests.passes.pieces import gathered_layers as layers
from tests.passes.pieces import test_batch, test_by_token
from tests.passes.pieces.layers_without_drops import RANKS, TOKENS, WIDTH, Layer, captured


def sizes(module: fx.GraphModule, holds: Callable[[fx.Node], bool]) -> list[tuple[int, ...]]:
    found = (ops.tensor(node) for node in module.graph.nodes if holds(node))
    return [tuple(value.shape) for value in found if value is not None]


def launched(module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in ops.calls(module.graph, comms.is_collective) if is_piece(node)]


@pytest.mark.parametrize("pieces", [2, 3])
@pytest.mark.parametrize(("layer", "gathers"), [(layers.with_room, 1), (layers.sorted_rows, 3)])
def test_each_piece_gathers_some_tokens_of_all_ranks(layer: Layer, gathers: int, pieces: int) -> None:
    module = captured(layer)
    found = test_by_token.cut(module, pieces)
    assert (found.pairs, found.whole) == (1, ())
    assert not regions_of(module.graph)[0]
    launches = launched(module)
    assert launches == ops.calls(module.graph, comms.is_collective)
    # all pieces are on their way before the first sum is scattered
    kinds = [comms.is_scatter(node) for node in launches]
    assert kinds == [False] * gathers * pieces + [True] * pieces
    each = TOKENS // pieces
    assert sizes(module, comms.is_gather).count((RANKS * each, WIDTH)) == pieces
    assert sizes(module, comms.is_scatter) == [(each, WIDTH)] * pieces
    # experts have room for the rows of a piece, not for those of all tokens
    rows = RANKS * each * (1 if layer is layers.with_room else 2)
    assert [shape[-2] for shape in sizes(module, ops.is_matmul)] == [rows] * pieces
    earlier = cut_earlier(module.graph)
    assert (earlier.pieces, earlier.exchanges, earlier.along) == (pieces, 1, ("tokens",))


def test_pieces_may_differ_by_a_token() -> None:
    module = captured(layers.with_room, tokens=7)
    assert test_by_token.cut(module, 2).pairs == 1
    assert [shape[0] for shape in sizes(module, comms.is_gather)] == [8, 6]


def test_a_piece_goes_from_one_exchange_into_the_next() -> None:
    module = captured(layers.two_layers)
    assert [region.pairs for region in regions_of(module.graph)[0]] == [2]
    test_by_token.cut(module)
    scatters = [node for node in launched(module) if comms.is_scatter(node)]
    for own, other in ((0, 1), (1, 0)):
        needed = set(walk_back([scatters[2 + own]]))
        assert scatters[own] in needed
        assert scatters[other] not in needed


def test_where_tokens_meet_between_layers_each_has_its_own_pieces() -> None:
    module = captured(layers.two_layers_that_mix)
    assert [region.pairs for region in regions_of(module.graph)[0]] == [1, 1]
    assert test_by_token.cut(module).pairs == 2


def test_gathers_of_a_sequence_stay() -> None:
    module = captured(layers.beside_a_sequence)
    old = [node.name for node in ops.calls(module.graph, comms.is_collective)]
    assert test_by_token.cut(module).pairs == 1
    whole = [node.name for node in ops.calls(module.graph, comms.is_collective) if not is_piece(node)]
    assert whole == old[:2]  # the gather and the scatter around the attention
    assert regions_of(captured(layers.sequence).graph) == ([], [])


@pytest.mark.parametrize(
    ("layer", "node", "reason"),
    [
        (layers.with_drops, "lt", "experts have room for 21 of 24 rows, and parts of the tokens drop other ones"),
        (layers.of_some_rows, "getitem", "24 of 48 rows are taken, and of parts of the tokens other ones"),
        (layers.with_attention, "scaled_dot_product_attention", "tokens meet in it"),
        (layers.with_a_sum, "_c10d_functional::all_reduce", "it communicates between the gather of tokens and"),
        (layers.of_other_rows, "_c10d_functional::reduce_scatter_tensor", "its rows, 48, are not as many as were"),
    ],
)
def test_what_is_refused_is_named(layer: Layer, node: str, reason: str) -> None:
    module = captured(layer)
    before = str(module.graph)
    (refused,) = test_by_token.cut(module).whole
    assert reason in refused.reason
    assert ops.op_name(refused.node) == node
    assert re.search(r"(layers\w*|comm|collectives)\.py:\d+", str(user_calls.source_line(refused.node)))
    assert refused.launch is not None
    assert comms.is_gather(refused.launch)
    assert str(module.graph) == before


def test_tokens_that_meet_are_refused_by_the_proof() -> None:
    with pytest.raises(VerificationError, match="its rows are not those of"):
        test_by_token.cut(captured(layers.next_to_each_other))


def test_nothing_is_gathered_twice() -> None:
    with pytest.raises(NotSeparableError, match="what it gathers of all tokens is read otherwise"):
        test_by_token.cut(captured(layers.with_load))


def test_more_pieces_than_tokens_are_refused() -> None:
    with pytest.raises(NotSeparableError, match="its tokens come in 3 equal parts"):
        test_by_token.cut(captured(layers.sorted_rows, tokens=3), 4)


# The batch


@pytest.mark.parametrize("batch", [2, 3])
def test_each_part_of_a_batch_gathers_its_tokens(batch: int) -> None:
    module = captured(layers.stack, batch=batch)
    assert test_batch.cut(module) == 2
    assert len(launched(module)) == len(ops.calls(module.graph, comms.is_collective)) == 2 * (2 + 4)
    assert {noted_along(node) for node in launched(module)} == {"batch"}
    gathered = [shape[0] for shape in sizes(module, comms.is_gather) if shape[-1] == WIDTH]
    assert sum(gathered) == 2 * RANKS * batch * TOKENS
    assert len(gathered) == 4
    assert sizes(module, lambda node: ops.op_name(node) == "cat")[-1] == (batch, TOKENS, WIDTH)


def test_a_batch_for_which_there_is_no_room_is_refused() -> None:
    with pytest.raises(NotSeparableError, match="experts have room for 42 of 48 rows"):
        test_batch.cut(captured(layers.stack_with_drops, batch=2))
