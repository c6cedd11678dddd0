# SPDX-License-Identifier: Apache-2.0
"""The account of pieces: whatever is wrong with a graph that was cut is seen, whoever cut it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx

from farskip_compile.errors import VerificationError
from farskip_compile.passes.graph import comms, ops
from farskip_compile.passes.graph.graph_snapshot import GraphSnapshot
from farskip_compile.passes.pieces import cut_exchanges, rules
from farskip_compile.verify.pieces import HINT, verify_pieces
from tests.passes.pieces.regions import Region, trace

aten = torch.ops.aten


def traced(region: Region) -> fx.GraphModule:
    return trace(region.run, torch.randn(region.shape(), dtype=torch.float64), region.tensors())


def nodes(graph: fx.Graph, name: str) -> list[fx.Node]:
    """The nodes that compute rows of an old one, of an operator."""
    return [node for node in graph.nodes if ops.op_name(node) == name and HINT in node.meta]


def first(graph: fx.Graph, name: str) -> fx.Node:
    return nodes(graph, name)[0]


def slices(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.target is aten.slice.Tensor]


def cats(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.target is aten.cat.default]


def other_rows(graph: fx.Graph) -> None:
    slices(graph)[0].args = (*slices(graph)[0].args[:2], 1, 3)


def rows_that_are_not_there(graph: fx.Graph) -> None:
    slices(graph)[1].args = (*slices(graph)[1].args[:2], 2, 5)


def other_dimension(graph: fx.Graph) -> None:
    slices(graph)[0].args = (slices(graph)[0].args[0], 2, 0, 2)


def the_same_rows_twice(graph: fx.Graph) -> None:
    one, two = nodes(graph, "_c10d_functional::all_to_all_single")[:2]
    two.replace_input_with(two.args[0], one.args[0])  # type: ignore[arg-type]


def weights_of_other_experts(graph: fx.Graph) -> None:
    one, two = nodes(graph, "bmm")[:2]
    two.replace_input_with(two.args[1], one.args[1])  # type: ignore[arg-type]


def rows_of_another_piece(graph: fx.Graph) -> None:
    one, two = nodes(graph, "bmm")[:2]
    two.replace_input_with(two.args[0], one.args[0])  # type: ignore[arg-type]


def order(graph: fx.Graph) -> None:
    cats(graph)[0].args = (list(cats(graph)[0].args[0])[::-1], *cats(graph)[0].args[1:])  # type: ignore[call-overload]


def one_piece_twice(graph: fx.Graph) -> None:
    parts = list(cats(graph)[0].args[0])  # type: ignore[call-overload]
    cats(graph)[0].args = ([parts[0], parts[0]], *cats(graph)[0].args[1:])


def another_dimension_of_the_whole(graph: fx.Graph) -> None:
    cats(graph)[0].args = (cats(graph)[0].args[0], 2)


def another_operator(graph: fx.Graph) -> None:
    first(graph, "mul").target = aten.add.Tensor


def another_number(graph: fx.Graph) -> None:
    node = first(graph, "pow")
    node.args = (node.args[0], 3)


def another_type(graph: fx.Graph) -> None:
    node = first(graph, "view") if nodes(graph, "view") else first(graph, "_unsafe_view")
    node.target, node.args = aten.view.dtype, (node.args[0], torch.int64)


def a_slice_of_another_type(graph: fx.Graph) -> None:
    node = slices(graph)[0]
    with graph.inserting_after(node):
        new = graph.call_function(aten.view.dtype, (node, torch.int64))
    new.meta["val"] = node.meta["val"].view(torch.int64)
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)


def another_group(graph: fx.Graph) -> None:
    node = first(graph, "_c10d_functional::all_to_all_single")
    node.args = (*node.args[:3], "another")


def other_shares(graph: fx.Graph) -> None:
    node = first(graph, "_c10d_functional::all_to_all_single")
    node.args = (node.args[0], [3, 1], [1, 3], node.args[3])


def too_large_shares(graph: fx.Graph) -> None:
    node = first(graph, "_c10d_functional::all_to_all_single")
    more = [size + 1 for size in node.args[1]]  # type: ignore[union-attr]
    node.args = (node.args[0], more, more, node.args[3])


def a_launch_more(graph: fx.Graph) -> None:
    node = nodes(graph, "_c10d_functional::all_to_all_single")[1]
    with graph.inserting_after(node):
        graph.node_copy(node)


def whole_and_in_pieces(graph: fx.Graph) -> None:
    """An old launch is left: a dispatch that was not cut, and is said to be in pieces, too."""
    old = next(node for node in graph.nodes if comms.is_collective(node) and HINT not in node.meta)
    with graph.inserting_after(old):
        new = graph.call_function(aten.slice.Tensor, (old.args[0], 1, 0, 1))
    new.meta["val"] = old.args[0].meta["val"][:, :1]
    with graph.inserting_after(new):
        piece = graph.call_function(old.target, (new, *old.args[1:]))
    piece.meta = {"val": new.meta["val"] + 0, HINT: old.name}


def a_new_node(graph: fx.Graph) -> None:
    node = cats(graph)[0]
    with graph.inserting_after(node):
        new = graph.call_function(aten.neg.default, (node,))
    new.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)


def an_old_node(graph: fx.Graph) -> None:
    node = next(node for node in graph.nodes if node.target is aten.exp.default)
    node.target = aten.sin.default


def a_part_for_the_whole(graph: fx.Graph) -> None:
    node = next(node for node in graph.nodes if node.target is aten.exp.default)
    source = node.args[0].args[0]
    node.args[0].replace_input_with(source, source.args[0][0])


def names_of_others(graph: fx.Graph) -> None:
    one, other = graph.find_nodes(op="placeholder")[:2]
    one.name, other.name = other.name, one.name


FAULTS: list[Callable[[fx.Graph], None]] = [
    other_rows,
    rows_that_are_not_there,
    other_dimension,
    the_same_rows_twice,
    weights_of_other_experts,
    rows_of_another_piece,
    order,
    one_piece_twice,
    another_dimension_of_the_whole,
    another_operator,
    another_number,
    another_type,
    a_slice_of_another_type,
    another_group,
    other_shares,
    too_large_shares,
    a_launch_more,
    a_new_node,
    an_old_node,
    a_part_for_the_whole,
    names_of_others,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("form", ["rows", "blocks"])
def test_every_fault_is_seen(fault: Callable[[fx.Graph], None], form: str) -> None:
    module = traced(Region(2, 4, 3, form, ("weights", "activation", "norm"), kept=(0,)))
    before = GraphSnapshot(module.graph)
    cut_exchanges(module.graph, 2)
    verify_pieces(module.graph, before)
    fault(module.graph)
    with pytest.raises(VerificationError, match="exchanges in pieces"):
        verify_pieces(module.graph, before)


@pytest.mark.parametrize("step", ["softmax of rows", "mean of experts"])
def test_a_pass_that_takes_rows_for_apart_is_seen(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = traced(Region(2, 1, 4, "rows", (step,)) if "rows" in step else Region(2, 4, 1, "rows", (step,)))
    before = GraphSnapshot(module.graph)
    for name in ("_softmax", "mean", "sum", "amax"):
        monkeypatch.setitem(rules.RULES, name, lambda node, axes: rules.CarriedAxis(axes[node.args[0]]))
    assert cut_exchanges(module.graph, 2).exchanges == 1
    with pytest.raises(VerificationError, match="depend on other rows than their own"):
        verify_pieces(module.graph, before)


def test_an_exchange_whole_and_in_pieces_is_seen() -> None:
    module = traced(Region(2, 2, 3, "rows", ("weights",)))
    before = GraphSnapshot(module.graph)
    whole_and_in_pieces(module.graph)
    with pytest.raises(VerificationError, match="launched whole and in pieces"):
        verify_pieces(module.graph, before)


def test_an_exchange_that_is_gone_is_seen() -> None:
    module = traced(Region(2, 4, 3, "rows", ("weights",)))
    before = GraphSnapshot(module.graph)
    last = [node for node in module.graph.nodes if comms.is_wait(node)][-1]
    last.replace_all_uses_with(last.args[0].args[0])
    module.graph.erase_node(last)
    with pytest.raises(VerificationError):
        verify_pieces(module.graph, before)
