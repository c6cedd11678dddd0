# SPDX-License-Identifier: Apache-2.0
"""Exchanges without drops in pieces by token: what is cut, in which order, and what is refused by the proof.

That results are the same on real ranks is shown in tests/distributed/test_pieces_by_token_ranks.py.
"""

from __future__ import annotations

import pytest
from torch import fx

from farskip_compile.errors import VerificationError
from farskip_compile.passes.graph import comms, ops
from farskip_compile.passes.graph.graph_snapshot import GraphSnapshot
from farskip_compile.passes.pieces.notes import is_piece, noted
from farskip_compile.passes.pieces.rules import NotSeparableError
from farskip_compile.passes.pieces.tokens import TokensCut, cut_by_token
from farskip_compile.passes.pieces.tokens.region import regions_of
from farskip_compile.verify.tokens import verify_tokens
from tests.passes.pieces import layers_without_drops as layers
from tests.passes.pieces.layers_without_drops import Layer, captured


def cut(module: fx.GraphModule, pieces: int = 2) -> TokensCut:
    """Cut and verify."""
    before = GraphSnapshot(module.graph)
    found = cut_by_token(module.graph, lambda _: pieces)
    module.graph.lint()
    verify_tokens(module.graph, before)
    module.recompile()
    return found


def launched(module: fx.GraphModule) -> list[fx.Node]:
    """Pieces, in order."""
    return [node for node in ops.calls(module.graph, comms.is_all_to_all) if is_piece(node)]


@pytest.mark.parametrize("layer", [layers.ours, layers.grouped, layers.with_load])
@pytest.mark.parametrize("pieces", [2, 3, 4])
def test_each_piece_is_an_exchange_of_some_tokens(layer: Layer, pieces: int) -> None:
    module = captured(layer)
    found = cut(module, pieces)
    assert (found.pairs, found.whole) == (1, ())
    pieces_of = launched(module)
    assert [noted(node) for node in pieces_of] == [str(pieces)] * 2 * pieces
    # all dispatches come before the first combine
    place = {node: number for number, node in enumerate(module.graph.nodes)}
    products = [place[node] for node in module.graph.nodes if ops.is_matmul(node)]
    assert place[pieces_of[pieces - 1]] < min(products) < max(products) < place[pieces_of[pieces]]


def test_pieces_may_differ_by_a_token() -> None:
    module = captured(layers.grouped, tokens=7)
    assert cut(module, 2).pairs == 1
    lengths = {node.args[3] for node in module.graph.nodes if ops.op_name(node) == "narrow"}
    assert lengths == {4, 3, 8, 6}  # tokens, and their two copies


def test_counts_for_a_loss_are_those_of_all_tokens() -> None:
    module = captured(layers.with_load)
    cut(module)
    (share,) = [node for node in module.graph.nodes if ops.op_name(node) == "one_hot"]
    assert tuple(ops.tensor(share).shape) == (layers.TOKENS, 2, layers.EXPERTS)  # type: ignore[union-attr]


def test_a_piece_goes_from_one_exchange_into_the_next() -> None:
    module = captured(layers.two_layers)
    assert [region.pairs for region in regions_of(module.graph)[0]] == [2]
    cut(module)
    first, second = (launched(module)[number::2] for number in range(2))  # first and second pieces
    for own, others in ((first, second), (second, first)):
        needed = set()
        queue = [own[2]]  # the dispatch of the second layer
        while queue:
            node = queue.pop()
            needed.add(node)
            queue.extend(node.all_input_nodes)
        assert own[1] in needed
        assert not needed & set(others)


def test_where_tokens_meet_between_layers_each_has_its_own_pieces() -> None:
    module = captured(layers.two_layers_that_mix)
    assert [region.pairs for region in regions_of(module.graph)[0]] == [1, 1]
    assert cut(module).pairs == 2


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (layers.by_load, "its rows are not those of"),
        (layers.next_to_each_other, "its rows are not those of"),
        (layers.not_put_back, "its rows are not those of"),
        (layers.noisy, "what it did is no longer in the graph"),
    ],
)
def test_what_does_not_keep_tokens_apart_is_refused(layer: Layer, reason: str) -> None:
    module = captured(layer)
    with pytest.raises(VerificationError, match=reason):
        cut(module)


def test_rows_that_never_come_home_are_refused() -> None:
    module = captured(layers.of_no_known_size)
    (reason,) = cut(module).whole
    assert "as many rows as data decides come back" in reason.reason
    assert not launched(module)


def test_more_pieces_than_tokens_are_refused() -> None:
    module = captured(layers.grouped, tokens=3)
    with pytest.raises(NotSeparableError, match="its tokens come in 3 equal parts"):
        cut(module, 4)
