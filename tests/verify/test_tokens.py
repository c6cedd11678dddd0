# SPDX-License-Identifier: Apache-2.0
"""The proof of exchanges in pieces by token: each fault in a cut graph is noticed, and what is right passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from farskip_compile.errors import VerificationError
from farskip_compile.passes.graph import comms, ops
from farskip_compile.passes.graph.graph_snapshot import GraphSnapshot
from farskip_compile.passes.pieces.notes import is_piece
from farskip_compile.passes.pieces.tokens import cut_by_token
from farskip_compile.verify.tokens import verify_tokens
from farskip_compile.verify.tokens.alike import key_of
from farskip_compile.verify.tokens.arguments import UnknownError
from farskip_compile.verify.tokens.labels import TokenLabels, at_depth, fresh, viewed
from farskip_compile.verify.tokens.rules import apply
from tests.passes.pieces import layers_without_drops as layers
from tests.passes.pieces.layers_without_drops import Layer, captured

# Labels


def test_a_value_is_the_same_at_each_depth() -> None:
    value = fresh(1, (4, 6, 2), 2)
    for depth in range(4):
        first, second = at_depth(value, depth), at_depth(fresh(2, (4, 6, 2), 2), depth)
        assert first.rows.shape == value.shape[:depth]
        assert not torch.isin(first.rows, second.rows).any()
    assert at_depth(value, 3).rows.unique().numel() == 48


def test_a_view_keeps_rows_where_they_are_rows_of_both() -> None:
    value = fresh(1, (4, 6), 1)
    assert torch.equal(viewed(value, (2, 2, 6)).rows.flatten(), value.rows)
    assert torch.equal(viewed(value, (4, 3, 2)).rows, value.rows)
    assert viewed(value, (8, 3)).rows.unique().numel() == 24  # parts of rows: entry by entry
    with pytest.raises(ValueError, match="is no"):
        viewed(value, (5, 5))


FORM = ((4, 6), torch.float64)


@pytest.mark.parametrize(
    ("name", "args", "apart"),
    [
        ("mul", (3.0,), True),
        ("softmax", (-1,), True),
        ("softmax", (0,), False),
        ("cumsum", (1,), True),
        ("cumsum", (0,), False),
        ("flip", ([0],), False),  # it has no rule: every row is made of all
        ("sort", (-1,), True),
        ("norm", (2, -1, True), True),
        ("norm", (1, 0, True), False),  # the first number is the power
        ("amax", (1, True), True),
    ],
)
def test_what_a_row_is_made_of(name: str, args: tuple[object, ...], apart: bool) -> None:
    """Another last row changes the first one, or does not."""
    form: Any = [FORM, ((4, 6), torch.int64)] if name == "sort" else FORM
    if args[-1] is True:  # the dimension is kept
        form = (4, 1) if apart else (1, 6), torch.float64
    one, other = fresh(1, (4, 6), 1), fresh(1, (4, 6), 1)
    other.rows[-1] += 1
    first, second = (apply(name, (value, *args), {}, form) for value in (one, other))  # type: ignore[arg-type]
    if name == "sort":
        first, second = first[0], second[0]
    assert isinstance(first, TokenLabels)
    assert isinstance(second, TokenLabels)
    same = torch.equal(at_depth(first, 1).rows[0], at_depth(second, 1).rows[0])
    assert same == apart


def test_views_of_features_are_told_apart() -> None:
    value = fresh(1, (4, 6), 1)
    summed = [
        apply("sum", (viewed(value, shape), 2), {}, (shape[:2], torch.float64)) for shape in ((4, 3, 2), (4, 2, 3))
    ]
    assert not torch.isin(at_depth(summed[0], 1).rows, at_depth(summed[1], 1).rows).any()
    turned = apply("transpose", (viewed(value, (4, 2, 3)), 1, 2), {}, ((4, 3, 2), torch.float64))
    assert isinstance(turned, TokenLabels)
    assert not torch.equal(turned.rows, viewed(value, (4, 3, 2)).rows)


# Faults

Fault = Callable[[fx.Graph], None]


def pieces(graph: fx.Graph) -> list[fx.Node]:
    """Launches: dispatches of both pieces, combines of both."""
    return [node for node in ops.calls(graph, comms.is_all_to_all) if is_piece(node)]


def named(graph: fx.Graph, name: str) -> list[fx.Node]:
    return [node for node in graph.nodes if ops.op_name(node) == name]


def other_rows(graph: fx.Graph) -> None:
    """The second piece gets the rows of the first one."""
    first = named(graph, "narrow")[0]
    second = next(node for node in named(graph, "narrow") if node.args[0] is first.args[0] and node is not first)
    second.update_arg(2, 0)


def other_order(graph: fx.Graph) -> None:
    """The pieces are put together the other way round."""
    joined = named(graph, "cat")[-1]
    joined.update_arg(0, list(reversed(joined.args[0])))  # type: ignore[arg-type]


def other_answer(graph: fx.Graph) -> None:
    """Both pieces take what came back for the first one."""
    first, second = pieces(graph)[2:]
    wait = next(iter(second.users))
    wait.update_arg(0, first)


def other_weights(graph: fx.Graph) -> None:
    """The weights of the first piece for the second one."""
    first, second = [node for node in named(graph, "mul") if not is_old(node)][:2]
    second.update_arg(1, first.args[1])


def other_number(graph: fx.Graph) -> None:
    """The best one instead of the best two would be seen by shapes; a softmax along tokens is not."""
    node = named(graph, "softmax")[0]
    node.update_arg(1, 0)


def other_sum(graph: fx.Graph) -> None:
    """Copies of a token are multiplied."""
    for node in named(graph, "sum"):
        if not is_old(node) and ops.is_floating(node):
            node.target = "prod" if node.op == "call_method" else torch.prod
            return


def other_product(graph: fx.Graph) -> None:
    """A row more than there is."""
    launch = pieces(graph)[0]
    launch.update_arg(1, list(reversed(launch.args[1])))  # type: ignore[arg-type]


def other_ranks(graph: fx.Graph) -> None:
    """The pieces go to another group of as many ranks."""
    for launch in pieces(graph):
        launch.update_arg(3, "another")


OLD: set[str] = set()


def is_old(node: fx.Node) -> bool:
    return node.name in OLD


def cut(layer: Layer) -> tuple[fx.Graph, GraphSnapshot]:
    module = captured(layer)
    before = GraphSnapshot(module.graph)
    OLD.clear()
    OLD.update(node.name for node in module.graph.nodes)
    cut_by_token(module.graph, lambda _: 2)
    return module.graph, before


@pytest.mark.parametrize("layer", [layers.ours, layers.grouped, layers.with_load, layers.two_layers])
def test_what_was_cut_passes(layer: Layer) -> None:
    verify_tokens(*cut(layer))


@pytest.mark.parametrize("fault", [other_rows, other_order, other_answer, other_number, other_product, other_ranks])
@pytest.mark.parametrize("layer", [layers.ours, layers.grouped])
def test_a_fault_is_noticed(layer: Layer, fault: Fault) -> None:
    graph, before = cut(layer)
    fault(graph)
    with pytest.raises(VerificationError, match="by token"):
        verify_tokens(graph, before)


def test_pieces_that_go_to_other_ranks_are_named() -> None:
    graph, before = cut(layers.ours)
    other_ranks(graph)
    with pytest.raises(VerificationError, match="it goes to other ranks than any exchange did"):
        verify_tokens(graph, before)


@pytest.mark.parametrize("fault", [other_weights, other_sum])
def test_a_fault_in_what_follows_is_noticed(fault: Fault) -> None:
    graph, before = cut(layers.ours)
    fault(graph)
    with pytest.raises(VerificationError, match="by token"):
        verify_tokens(graph, before)


def test_layers_alike_are_proved_once_and_others_for_themselves() -> None:
    """The second layer and the third make the same calls; in the third one a piece gets the rows of the other."""

    def stack(x: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x = (x + layers.grouped(x)).cumsum(0)
        return x

    graph, before = cut(stack)
    verify_tokens(graph, before)
    last = named(graph, "narrow")[-1]
    assert last.args[2] != 0
    last.update_arg(2, 0)
    with pytest.raises(VerificationError, match="by token"):
        verify_tokens(graph, before)


@pytest.mark.parametrize(
    ("rows", "dtype", "constant"), [(8, torch.float64, 2), (4, torch.float32, 2), (4, torch.float64, 3)]
)
def test_what_says_the_same(rows: int, dtype: torch.dtype, constant: int) -> None:
    """Names do not matter; sizes, types and constants do."""

    def key(name: str, rows: int = 4, dtype: torch.dtype = torch.float64, constant: int = 2) -> object:
        graph = fx.Graph()
        x = graph.placeholder(name)
        x.meta["example_value"] = torch.empty(rows, 6, dtype=dtype, device="meta")
        y = graph.call_function(torch.mul, (x, constant))
        return key_of([{x: name, y: None}])

    assert key("one") == key("other")
    assert key("one") != key("one", rows, dtype, constant)


def test_nothing_else_may_be_added_or_go() -> None:
    graph, before = cut(layers.ours)
    output = next(node for node in graph.nodes if node.op == "output")
    with graph.inserting_before(output):
        graph.call_function(torch.manual_seed, (0,))
    with pytest.raises(VerificationError, match="was not in the graph"):
        verify_tokens(graph, before)


def test_what_is_written_to_is_not_read_by_pieces() -> None:
    """The order of a write and of what is added is not followed."""
    graph, before = cut(layers.written_behind)
    with pytest.raises(VerificationError, match="it reads what is written to"):
        verify_tokens(graph, before)


def test_a_function_that_is_not_torchs_is_not_known_by_its_name() -> None:
    graph, before = cut(layers.ours)

    def mul(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return one.cumsum(0) * other

    for node in [node for node in graph.nodes if ops.op_name(node) == "mul" and not is_old(node)]:
        node.target = mul
    with pytest.raises(VerificationError, match="not a function of PyTorch"):
        verify_tokens(graph, before)


def test_an_embedding_that_counts_its_rows_is_not_known() -> None:
    table, ids = fresh(1, (4, 6), 0), torch.arange(3)
    form: Any = (3, 6), torch.float64
    assert isinstance(apply("embedding", (ids, table), {}, form), TokenLabels)
    with pytest.raises(UnknownError, match="how often"):
        apply("embedding", (ids, table), {"scale_grad_by_freq": True}, form)


def test_rows_are_added_in_their_order_and_by_their_factor() -> None:
    target, rows, form = fresh(1, (2, 6), 1), fresh(2, (3, 6), 1), ((2, 6), torch.float64)

    def added(places: list[int], source: TokenLabels, **more: object) -> torch.Tensor:
        result = apply("index_add", (target, 0, torch.tensor(places), source), dict(more), form)
        assert isinstance(result, TokenLabels)
        return result.rows

    first = added([0, 1, 0], rows)
    assert torch.equal(first, added([0, 1, 0], rows))
    turned = TokenLabels(rows.rows.flip(0), rows.shape)
    assert first[0] != added([0, 1, 0], turned)[0]  # the same rows in another order
    assert first[1] == added([0, 1, 0], turned)[1]
    assert not torch.isin(added([0, 1, 0], rows, alpha=2), first).any()


def test_choices_are_drawn_such_that_the_first_experts_get_far_more_rows() -> None:
    form: Any = [((400, 2), torch.float64), ((400, 2), torch.int64)]
    _, places = apply("topk", (fresh(1, (400, 16), 1), 2), {}, form)
    counts = places.flatten().bincount(minlength=16)
    assert counts[:2].min() > 4 * counts[2:].max()
    assert counts.min() > 0
