# SPDX-License-Identifier: Apache-2.0
"""The proof of exchanges in pieces by expert: whatever is done to the graph in pieces is noticed.

Each fault is applied to a graph that was cut and is right; that the right one passes is the first test.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import fx

from farskip_compile.comm import combine, dispatch
from farskip_compile.errors import VerificationError
from farskip_compile.passes.graph import comms, ops
from farskip_compile.passes.graph.graph_snapshot import GraphSnapshot
from farskip_compile.passes.pieces.by_expert import cut_by_expert
from farskip_compile.verify.tokens.by_expert import verify_by_expert
from tests.passes.pieces.test_by_expert import EXPERTS, captured, sized


def layer(rows: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    given, receipt = dispatch(rows, experts, experts=EXPERTS, group=dist.group.WORLD)
    return combine([one * 2 for one in given], receipt) + rows


def cut() -> tuple[fx.GraphModule, GraphSnapshot]:
    module = captured(layer)
    before = GraphSnapshot(module.graph)
    cut_by_expert(module.graph, lambda _: 2)
    return module, before


def named(graph: fx.Graph, name: str) -> list[fx.Node]:
    return [node for node in graph.nodes if ops.op_name(node) == name]


def swap(one: fx.Node, other: fx.Node) -> None:
    """Let the readers of two values read the other one."""
    readers = list(other.users)
    one.replace_all_uses_with(other, delete_user_cb=lambda user: user not in readers)
    for user in readers:
        user.replace_input_with(other, one)


def blocks_swapped(graph: fx.Graph) -> None:
    """Two experts get each other's rows."""
    products = named(graph, "mul")[:2]
    first, second = (product.args[0] for product in products)
    products[0].replace_input_with(first, second)  # type: ignore[arg-type]
    products[1].replace_input_with(second, first)  # type: ignore[arg-type]


def parts_swapped(graph: fx.Graph) -> None:
    """What one piece sends to two ranks goes to the wrong ones."""
    sent = sized(graph.owning_module)[0].args[0]  # type: ignore[arg-type]
    sent.args = (list(reversed(sent.args[0])),)  # type: ignore[union-attr,arg-type,call-overload]


def places_of_another_rank(graph: fx.Graph) -> None:
    joined = named(graph, "cat")[-1]
    joined.args = (list(reversed(joined.args[0])),)  # type: ignore[arg-type,call-overload]


def places_of_another_piece(graph: fx.Graph) -> None:
    one, other = named(graph, "index_copy")
    one.prepend(other.args[2])  # type: ignore[arg-type]
    one.args, other.args = (*one.args[:2], other.args[2], one.args[3]), (*other.args[:2], one.args[2], other.args[3])


def zeros_of_another_type(graph: fx.Graph) -> None:
    last = named(graph, "index_copy")[-1]
    last.meta["example_value"] = last.meta["example_value"].double()


def sizes_of_another_piece(graph: fx.Graph) -> None:
    one, other = sized(graph.owning_module)[:2]  # type: ignore[arg-type]
    for size in other.args[1]:  # type: ignore[union-attr]
        one.prepend(size)  # type: ignore[arg-type]
    one.args = (one.args[0], other.args[1], *one.args[2:])


def one_piece_waited_for_twice(graph: fx.Graph) -> None:
    one, other = sized(graph.owning_module)[2:]  # type: ignore[arg-type]
    wait = next(iter(other.users))
    wait.args = (one,)
    graph.erase_node(other)


def another_operator(graph: fx.Graph) -> None:
    joined = named(graph, "cat")[-1]
    with graph.inserting_after(joined):
        new = graph.call_function(torch.neg, (joined,))
    joined.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    new.args = (joined,)


def another_group(graph: fx.Graph) -> None:
    for launch in sized(graph.owning_module):  # type: ignore[arg-type]
        comms.set_process_group(launch, "another")


def a_product_changed(graph: fx.Graph) -> None:
    product = named(graph, "mul")[0]
    product.args = (product.args[0], 3)


def a_product_of_something_else(graph: fx.Graph) -> None:
    one, other = named(graph, "mul")[:2]
    one.args = (other.args[0], 2)


def nothing_launched(graph: fx.Graph) -> None:
    """The rows that were sent are taken for those that arrive."""
    one = sized(graph.owning_module)[0]  # type: ignore[arg-type]
    wait = next(iter(one.users))
    wait.replace_all_uses_with(one.args[0])  # type: ignore[arg-type]
    graph.erase_node(wait)
    graph.erase_node(one)


FAULTS: tuple[Callable[[fx.Graph], None], ...] = (
    blocks_swapped,
    parts_swapped,
    places_of_another_rank,
    places_of_another_piece,
    zeros_of_another_type,
    sizes_of_another_piece,
    one_piece_waited_for_twice,
    another_operator,
    another_group,
    a_product_changed,
    a_product_of_something_else,
    nothing_launched,
)


def test_what_was_cut_passes() -> None:
    module, before = cut()
    verify_by_expert(module.graph, before)


def test_nothing_cut_passes() -> None:
    module = captured(layer)
    verify_by_expert(module.graph, GraphSnapshot(module.graph))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault: Callable[[fx.Graph], None]) -> None:
    module, before = cut()
    fault(module.graph)
    with pytest.raises(VerificationError, match="exchanges in pieces, by expert"):
        verify_by_expert(module.graph, before)
