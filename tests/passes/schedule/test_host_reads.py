# SPDX-License-Identifier: Apache-2.0
"""What the host reads of a device comes in one copy for each tensor, and is what it read before."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from farskip_compile.compiler.inductor_passes import host_copies  # noqa: F401 (operators)
from farskip_compile.errors import VerificationError
from farskip_compile.passes.graph import ops
from farskip_compile.passes.schedule import host_reads
from farskip_compile.passes.schedule.collectives import launches_with_waits
from farskip_compile.passes.schedule.host_reads import MOST, read_on_host
from farskip_compile.verify.host_reads import reads_before, verify_host_reads

aten = torch.ops.aten
READ = aten._local_scalar_dense.default


def call(graph: fx.Graph, target: Any, *args: Any) -> fx.Node:
    """With a fake value on a device that this machine need not have."""
    node = graph.call_function(target, args)
    found = target(*fx.map_arg(args, lambda one: one.meta["meta"])) if target is not READ else None
    node.meta["meta"] = found
    node.meta["val"] = 7 if found is None else FakeTensor(MODE, found, torch.device("cuda"))
    return node


MODE = FakeTensorMode()


def counts(graph: fx.Graph, size: tuple[int, ...], name: str, *, across: bool = False) -> fx.Node:
    """`across`: not in the order of its dimensions."""
    x = graph.placeholder(name)
    x.meta["meta"] = torch.empty(size, dtype=torch.int64, device="meta")
    x.meta["val"] = FakeTensor(MODE, x.meta["meta"], torch.device("cuda"))
    return call(graph, aten.add.Tensor, call(graph, aten.transpose.int, x, 0, -1) if across else x, 1)


@st.composite
def programs(draw: st.DrawFn) -> tuple[fx.GraphModule, list[torch.Tensor], list[fx.Node]]:
    """Tensors of counts, and reads of some of their numbers through views."""
    graph = fx.Graph()
    sizes = draw(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=3))
    tensors = [counts(graph, tuple(size), f"x{n}", across=draw(st.booleans())) for n, size in enumerate(sizes)]
    reads = []
    for _ in range(draw(st.integers(1, 6))):
        node = draw(st.sampled_from(tensors))
        while (rank := node.meta["val"].dim()) > 0:
            way = draw(st.sampled_from(["select", "select", "slice", "view", "transpose"]))
            dim = draw(st.integers(0, rank - 1))
            size = int(node.meta["val"].shape[dim])
            if way == "select":
                node = call(graph, aten.select.int, node, dim, draw(st.integers(0, size - 1)))
            elif way == "slice":
                node = call(graph, aten.slice.Tensor, node, dim, draw(st.integers(0, size - 1)), size)
            elif way == "transpose" and rank > 1:
                node = call(graph, aten.transpose.int, node, 0, dim)
            elif way == "view" and node.meta["val"].is_contiguous():
                node = call(graph, aten.view.default, node, [-1])
        reads.append(call(graph, READ, node))
    graph.output(tuple(reads))
    return fx.GraphModule({}, graph), [torch.randint(0, 99, size) for size in sizes], tensors


@given(programs())
def test_the_numbers_are_the_same_and_come_in_one_copy_of_each_tensor(program: Any) -> None:
    module, inputs, tensors = program
    expected = fx.Interpreter(module).run(*inputs)
    before = reads_before(module.graph)
    copies = read_on_host(module.graph)
    verify_host_reads(module.graph, before)
    module.graph.lint()
    assert fx.Interpreter(module).run(*inputs) == expected
    sent = [node for node in module.graph.nodes if ops.op_name(node) == "farskip::to_host"]
    assert len(sent) == copies == len({node.args[0] for node in sent}) <= len(tensors)
    assert all(len(waits) == 1 for waits in launches_with_waits(module.graph).values())
    assert len(launches_with_waits(module.graph)) == copies
    for node in module.graph.find_nodes(op="call_function", target=READ):
        base = next(one for one in ancestors(node) if one in tensors)
        assert (ops.tensor(node.args[0]).device.type == "cpu") is base.meta["val"].is_contiguous()


def ancestors(node: fx.Node) -> list[fx.Node]:
    """The first inputs, upwards."""
    return [node, *ancestors(node.args[0])] if node.args else [node]


def of(size: tuple[int, ...], *, device: str = "cuda") -> fx.GraphModule:
    """Three numbers of one tensor are read."""
    graph = fx.Graph()
    x = counts(graph, size, "x")
    x.meta["val"] = FakeTensor(MODE, x.meta["meta"], torch.device(device))
    picked = [call(graph, aten.select.int, x, 0, place) for place in range(3)]
    graph.output(tuple(call(graph, READ, one) for one in picked))
    return fx.GraphModule({}, graph)


def test_what_is_on_the_host_and_what_is_large_stays_as_it_is() -> None:
    assert read_on_host(of((3,)).graph) == 1
    assert read_on_host(of((MOST,)).graph) == 1
    assert read_on_host(of((MOST + 1,)).graph) == 0
    assert read_on_host(of((3,), device="cpu").graph) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([("pick", 2, 2)], "it reads number 2 of add_tensor, and read 0"),
        ([("on_host", 1, [])], "it does not hold what is being copied"),
        ([("to_host", 0, "x"), ("on_host", 1, ["x"])], "it read no part of x"),
        ([("add", 1, 2)], "it was changed, and is not a read"),
    ],
)
def test_other_numbers_are_not_delivered(changes: list[tuple[str, int, Any]], message: str) -> None:
    module = of((3,))
    before = reads_before(module.graph)
    read_on_host(module.graph)
    known = {ops.op_name(node).split("::")[-1]: node for node in reversed(module.graph.nodes)}
    known["pick"] = next(node for node in module.graph.nodes if node.target is READ).args[0]
    (x,) = module.graph.find_nodes(op="placeholder")
    for name, place, value in changes:
        known[name].update_arg(place, fx.node.map_aggregate(value, lambda one: x if one == "x" else one))
    with pytest.raises(VerificationError, match=message):
        verify_host_reads(module.graph, before)


@pytest.mark.parametrize("checked", [False, True])
def test_what_is_written_to_is_read_as_it_was(checked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that is made early would have the numbers of before the write."""
    module = of((3,))
    (total,) = module.graph.find_nodes(op="call_function", target=aten.add.Tensor)
    with module.graph.inserting_after(total):
        call(module.graph, aten.mul_.Tensor, total, 2)
    before = reads_before(module.graph)
    if checked:
        monkeypatch.setattr(host_reads.effects, "storage", lambda node: None)
        monkeypatch.setattr(host_reads.effects, "mutated_args", lambda node: [])
    copies = read_on_host(module.graph)
    monkeypatch.undo()
    if checked:
        with pytest.raises(VerificationError, match="it writes to what the host reads by a copy"):
            verify_host_reads(module.graph, before)
    else:
        assert copies == 0
        verify_host_reads(module.graph, before)
        assert fx.Interpreter(module).run(torch.tensor([0, 1, 2])) == (2, 4, 6)


def test_a_number_at_a_place_that_is_not_known_stays_as_it_is() -> None:
    module = of((3,))
    node = next(one for one in module.graph.nodes if one.target is READ).args[0]
    node.meta["val"] = Mock(spec=torch.Tensor, storage_offset=lambda: sympy.Symbol("u0"))
    assert read_on_host(module.graph) == 1
    reads = list(module.graph.find_nodes(op="call_function", target=READ))
    assert [ops.op_name(read.args[0].args[0]) for read in reads] == ["add", "farskip::on_host", "farskip::on_host"]


def test_a_node_that_is_gone_is_not_delivered() -> None:
    module = of((3,))
    before = reads_before(module.graph)
    read_on_host(module.graph)
    module.graph.erase_node(next(node for node in module.graph.nodes if node.name == "select_int"))
    with pytest.raises(VerificationError, match="nodes were removed, or are in another order"):
        verify_host_reads(module.graph, before)


def test_a_node_that_is_added_besides_is_not_delivered() -> None:
    module = of((3,))
    before = reads_before(module.graph)
    read_on_host(module.graph)
    (output,) = module.graph.find_nodes(op="output")
    with module.graph.inserting_before(output):
        module.graph.call_function(aten.sin.default, (output.args[0][0],))
    with pytest.raises(VerificationError, match="it was added, and copies nothing to the host"):
        verify_host_reads(module.graph, before)


def test_numbers_on_the_host_are_copied_at_once() -> None:
    numbers = torch.arange(6).view(2, 3).t()
    copy = torch.ops.farskip.to_host(numbers)
    assert torch.equal(torch.ops.farskip.on_host(copy, [numbers]), numbers.flatten())
