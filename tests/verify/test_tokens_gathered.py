# SPDX-License-Identifier: Apache-2.0
"""The proof of exchanges by all-gather in pieces by token: faults in a cut graph are noticed, what is right passes."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import fx

from farskip_compile.errors import VerificationError
from farskip_compile.passes.graph import comms, ops
from farskip_compile.passes.graph.graph_snapshot import GraphSnapshot
from farskip_compile.passes.pieces.notes import is_piece
from farskip_compile.passes.pieces.tokens import cut_by_token, gathers
from farskip_compile.verify.tokens import verify_tokens
from farskip_compile.verify.tokens.arguments import UnknownError
from farskip_compile.verify.tokens.exchanges import gathered, scattered
from farskip_compile.verify.tokens.labels import TokenLabels, at_depth, fresh
from farskip_compile.verify.tokens.rules import apply
from tests.passes.pieces import gathered_layers as layers
from tests.passes.pieces.layers_without_drops import Layer, captured

# Collectives


def test_a_gather_brings_the_rows_of_one_rank_after_the_other() -> None:
    one, other = fresh(1, (2, 6), 1), fresh(2, (2, 6), 1)
    for found in gathered([(one, 2, "0"), (other, 2, "0")]):
        assert found.shape == (4, 6)
        assert torch.equal(found.rows, torch.cat([one.rows, other.rows]))
    chosen = gathered([(torch.tensor([1]), 2, "0"), (torch.tensor([3]), 2, "0")])
    assert [numbers.tolist() for numbers in chosen] == [[1, 3], [1, 3]]
    with pytest.raises(UnknownError, match="not among 2 ranks"):
        gathered([(one, 4, "0"), (other, 4, "0")])


def test_a_scatter_adds_up_the_same_rows_in_the_order_of_the_ranks() -> None:
    one, other = fresh(1, (4, 6), 1), fresh(2, (4, 6), 1)

    def run(first: TokenLabels, second: TokenLabels, kind: str = "sum") -> list[torch.Tensor]:
        found = scattered([(first, kind, 2, "0"), (second, kind, 2, "0")])
        assert [value.shape for value in found] == [(2, 6), (2, 6)]
        return [value.rows for value in found]

    low, high = run(one, other)
    assert not torch.isin(low, high).any()
    for changed in (run(other, one), run(one, other, "avg"), run(one, one)):
        assert not torch.isin(torch.cat(changed), torch.cat([low, high])).any()
    last = TokenLabels(one.rows + torch.tensor([0, 0, 0, 1]), one.shape)  # it is in the share of the last rank
    assert [(mine != his).tolist() for mine, his in zip(run(last, other), (low, high), strict=True)] == [
        [False, False],
        [False, True],
    ]
    turned = TokenLabels(other.rows.roll(1), other.shape)  # each row with another one
    assert not torch.isin(torch.cat(run(one, turned)), torch.cat([low, high])).any()
    with pytest.raises(ValueError, match="no equal share"):
        scattered([(fresh(1, (3, 6), 1), "sum", 2, "0")] * 2)
    with pytest.raises(UnknownError, match="not among 2 ranks"):
        scattered([(one, "sum", 4, "0"), (other, "sum", 4, "0")])


# Rooms


def test_rows_without_a_place_are_no_rows() -> None:
    """Those that are written to one place are not told apart there, and the others are where they were written."""
    target, rows, form = fresh(1, (3, 6), 1), fresh(2, (4, 6), 1), ((3, 6), torch.float64)

    def put(places: list[int], source: TokenLabels) -> torch.Tensor:
        result = apply("index_copy", (target, 0, torch.tensor(places), source), {}, form)
        assert isinstance(result, TokenLabels)
        return result.rows

    found = put([2, 0, 2, 2], rows)
    assert found[0] == rows.rows[1]
    assert found[1] == target.rows[1]
    assert not torch.isin(found[2], rows.rows)
    turned = TokenLabels(rows.rows[[2, 1, 0, 3]], rows.shape)
    assert put([2, 0, 2, 2], turned)[2] != found[2]
    assert put([2, 2, 0, 2], rows)[2] != found[2]


def test_rows_of_an_expert_stay_apart_in_a_product_with_its_matrix() -> None:
    rows, weights, form = fresh(1, (2, 4, 6), 2), fresh(2, (2, 6, 5), 1), ((2, 4, 5), torch.float64)
    found = apply("bmm", (rows, weights), {}, form)
    assert isinstance(found, TokenLabels)
    rows.rows[1, 3] += 1
    changed = apply("bmm", (rows, weights), {}, form)
    assert isinstance(changed, TokenLabels)
    assert (changed.rows != found.rows).nonzero().tolist() == [[1, 3]]
    weights.rows[0] += 1
    assert ((apply("bmm", (rows, weights), {}, form).rows != changed.rows).sum(1)).tolist() == [4, 0]


def test_zeros_are_put_behind_rows() -> None:
    value, form = fresh(1, (3, 6), 1), ((4, 6), torch.float64)
    found = apply("pad", (value, (0, 0, 0, 1), "constant", None), {}, form)
    assert isinstance(found, TokenLabels)
    assert torch.equal(found.rows[:3], value.rows)
    zeros = apply("new_zeros", (value, 1, 6), {}, ((1, 6), torch.float64))
    assert torch.equal(found.rows[3:], at_depth(zeros, 1).rows)
    for given in (((0, 1, 0, 0), "constant", None), ((0, 0, 0, 1), "constant", 1.0), ((0, 0, 0, 1), "reflect", None)):
        with pytest.raises(UnknownError):
            apply("pad", (value, *given), {}, form)


# Faults


@functools.lru_cache
def snapshots(layer: Layer) -> tuple[GraphSnapshot, GraphSnapshot]:
    """Of a layer, and of it in two pieces."""
    module = captured(layer)
    before = GraphSnapshot(module.graph)
    assert cut_by_token(module.graph, lambda _: 2).pairs
    return before, GraphSnapshot(module.graph)


def cut(layer: Layer) -> tuple[fx.Graph, GraphSnapshot]:
    before, after = snapshots(layer)
    return after.restore(), before


def pieces(graph: fx.Graph, holds: Callable[[fx.Node], bool]) -> list[fx.Node]:
    return [node for node in ops.calls(graph, holds) if is_piece(node)]


def other_rows(graph: fx.Graph) -> None:
    """The second piece gathers the rows of the first one."""
    first, second, *_ = [node for node in graph.nodes if node.target is torch.narrow]
    second.update_arg(2, first.args[2])


def other_order(graph: fx.Graph) -> None:
    """The pieces are put together the other way round."""
    joined = joins(graph)[-1]
    joined.update_arg(0, list(reversed(joined.args[0])))  # type: ignore[arg-type]


def one_twice(graph: fx.Graph) -> None:
    """A piece is dropped."""
    joined = joins(graph)[-1]
    joined.update_arg(0, [joined.args[0][0]] * 2)  # type: ignore[index]


def joins(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.target is torch.cat]


def other_group(graph: fx.Graph) -> None:
    """Pieces are gathered over another group of as many ranks."""
    for launch in pieces(graph, comms.is_gather):
        comms.set_process_group(launch, "another")


def other_group_there(graph: fx.Graph) -> None:
    """There is such a group, and pieces are scattered over it."""
    scatter = pieces(graph, comms.is_scatter)[0]
    comms.set_process_group(scatter, "another")


def other_ranks(graph: fx.Graph) -> None:
    """Pieces go to other ranks and come back from there."""
    for launch in pieces(graph, comms.is_collective):
        comms.set_process_group(launch, "another")


def other_mean(graph: fx.Graph) -> None:
    """The mean over ranks."""
    pieces(graph, comms.is_scatter)[1].update_arg(1, "avg")


def other_sums(graph: fx.Graph) -> None:
    """What the experts made of the first piece is scattered twice."""
    first, second = pieces(graph, comms.is_scatter)
    second.update_arg(0, first.args[0])


def other_tokens(graph: fx.Graph) -> None:
    """The second piece's experts get the tokens of the first one."""
    first, second = [node for node in graph.nodes if comms.is_wait(node) and is_piece(node.args[0])][:2]
    second.update_arg(0, first.args[0])


def other_slots(graph: fx.Graph) -> None:
    """The experts of a piece begin at other slots: rows of one come to another one."""
    strides = [node for node in graph.nodes if ops.op_name(node) == "mul" and node.args[1] == 12]
    strides[0].update_arg(1, 11)


def less_room(graph: fx.Graph) -> None:
    """A piece has room for a row less than it has."""
    rooms = [node for node in graph.nodes if ops.op_name(node) == "lt" and node.args[1] == 12]
    rooms[0].update_arg(1, 11)


EACH = [
    other_ranks,
    other_rows,
    other_order,
    one_twice,
    other_group,
    other_group_there,
    other_mean,
    other_sums,
    other_tokens,
]


@pytest.mark.parametrize("layer", [layers.with_room, layers.sorted_rows, layers.two_layers])
def test_what_was_cut_passes(layer: Layer) -> None:
    verify_tokens(*cut(layer))


@pytest.mark.parametrize(
    ("layer", "fault"),
    [
        *((layer, fault) for layer in (layers.with_room, layers.sorted_rows) for fault in EACH),
        *((layers.with_room, fault) for fault in (other_slots, less_room)),
    ],
)
def test_a_fault_is_noticed(layer: Layer, fault: Callable[[fx.Graph], None]) -> None:
    graph, before = cut(layer)
    fault(graph)
    with pytest.raises(VerificationError, match="by token"):
        verify_tokens(graph, before)


@pytest.mark.parametrize("room", [23, 20, 13, 12, 8])
@pytest.mark.parametrize("scaled", [True, False], ids=["scaled", "as it is"])
def test_drops_are_noticed_however_rare(room: int, scaled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pass does not look for them, and gives a piece its share of the room, or all of it."""
    monkeypatch.setattr(gathers, "refuse_drops", lambda *_: None)
    module = captured(functools.partial(layers.with_room, room=lambda rows: room))
    before = GraphSnapshot(module.graph)
    assert cut_by_token(module.graph, lambda _: 2).pairs == 1
    for node in module.graph.nodes if scaled else ():
        if ops.op_name(node) == "lt" and node.args[1] == room:
            node.update_arg(1, room // 2)
    with pytest.raises(VerificationError, match="by token"):
        verify_tokens(module.graph, before)


def test_rows_that_are_left_out_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathers, "refuse_drops", lambda *_: None)
    module = captured(layers.of_some_rows)
    before = GraphSnapshot(module.graph)
    cut_by_token(module.graph, lambda _: 2)
    with pytest.raises(VerificationError, match="by token"):
        verify_tokens(module.graph, before)


def test_an_exchange_among_others_is_not_taken_for_one_among_these() -> None:
    """Both groups are those of exchanges."""
    graph, before = cut(layers.two_layers)
    was = before.restore()
    for one in (graph, was):
        for launch in [node for node in one.nodes if comms.is_gather(node) or comms.is_scatter(node)]:
            if launch.args[0] is not None and launch in last_layer(one):
                comms.set_process_group(launch, "another")
    with pytest.raises(VerificationError, match="among other ranks"):
        verify_tokens(graph, GraphSnapshot(was))


def last_layer(graph: fx.Graph) -> list[fx.Node]:
    found: list[fx.Node] = [node for node in graph.nodes if comms.is_gather(node) or comms.is_scatter(node)]
    return found[len(found) // 3 :]
