# SPDX-License-Identifier: Apache-2.0
"""Scheduled graphs compute the same values, bit for bit, also with collectives that read their input at the wait."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx
from torch._subclasses import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from farskip_compile._compat.inductor import may_be_written
from farskip_compile.passes.graph import comms, effects, ops
from farskip_compile.passes.schedule.collectives import launches_with_waits, normalize_collectives
from farskip_compile.passes.schedule.from_graph import read_program
from farskip_compile.passes.schedule.graph import pins, schedule_graph
from farskip_compile.passes.schedule.search import MemoryLimits
from farskip_compile.verify.before import remember
from tests.economy import examples

aten = torch.ops.aten
c10d = torch.ops._c10d_functional


class Constant:
    """Products take 1 s, collectives 3 s, everything else 0.1 s."""

    def compute(self, node: fx.Node) -> float:
        return 1.0 if ops.is_matmul(node) or ops.is_attention(node) else 0.1

    def link(self, node: fx.Node) -> str:
        return ""

    def interference(self, node: fx.Node) -> float:
        return 0.0

    def collective(self, node: fx.Node) -> float:
        return 3.0

    def arrival(self, node: fx.Node) -> float:
        return 2.0

    def bytes(self, node: fx.Node) -> int:
        return 64


@st.composite
def graphs(draw: st.DrawFn) -> fx.GraphModule:
    """Products, sums, views, writes in place, random numbers, writes to inputs, and collectives on two groups."""
    graph = fx.Graph()
    values = [graph.placeholder(name) for name in ("primals_1", "tangents_1", "x")]
    inputs = list(values)

    def pick() -> fx.Node:
        return draw(st.sampled_from(values[-6:] if draw(st.booleans()) else values))

    for _ in range(draw(st.integers(3, 24))):
        kind = draw(st.sampled_from(["mm", "add", "sin", "view", "collective", "collective", "write", "put", "rand"]))
        if kind == "mm":
            values.append(graph.call_function(aten.mm.default, (pick(), pick())))
        elif kind == "add":
            values.append(graph.call_function(aten.add.Tensor, (pick(), pick())))
        elif kind == "sin":
            values.append(graph.call_function(aten.sin.default, (pick(),)))
        elif kind == "view":
            values.append(graph.call_function(aten.t.default, (pick(),)))
        elif kind == "collective":
            group = draw(st.sampled_from("01"))
            launch = graph.call_function(c10d.all_reduce.default, (pick(), "sum", group))
            values.append(graph.call_function(c10d.wait_tensor.default, (launch,)))
        elif kind == "write":
            target = draw(st.sampled_from([v for v in values if v not in inputs] or inputs))
            graph.call_function(aten.mul_.Tensor, (target, 1.5))
        elif kind == "put":
            base = pick()
            values.append(graph.call_function(aten.index_put.default, (base, [None, 0], 7.0)))
        else:
            values.append(graph.call_function(aten.rand_like.default, (pick(),)))
    if draw(st.booleans()) and not _is_view_of(inputs[2], values[-1]):  # PyTorch copies nothing onto itself
        graph.call_function(aten.copy_.default, (inputs[2], values[-1]))
    outputs = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3))
    graph.output(tuple(outputs))
    _fix_puts(graph)
    module = fx.GraphModule({}, graph)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        FakeTensorProp(module, mode).propagate(*(torch.zeros(4, 4) for _ in inputs))
    return module


def _is_view_of(base: fx.Node, value: fx.Node) -> bool:
    while value.target is aten.t.default:
        value = value.args[0]  # type: ignore[assignment]
    return value is base


def _fix_puts(graph: fx.Graph) -> None:
    """Index and value of `index_put` as tensors that the graph makes itself."""
    for node in list(graph.nodes):
        if node.target is aten.index_put.default:
            with graph.inserting_before(node):
                index = graph.call_function(aten.arange.default, (2,))
                value = graph.call_function(aten.ones.default, ([2, 4],))
            node.args = (node.args[0], [index], value)


class Late(fx.Interpreter):
    """Runs a graph with collectives that read their input at the wait, and in place what Inductor would."""

    def __init__(self, module: fx.GraphModule, *, in_place: bool) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.flying: dict[int, torch.Tensor] = {}
        self.in_place = _reinplaced(module.graph) if in_place else set()

    def run_node(self, n: fx.Node) -> Any:
        if n.target is c10d.all_reduce.default:
            source = self.env[n.args[0]]
            output = torch.full_like(source, float("nan"), memory_format=torch.contiguous_format)
            self.flying[output.data_ptr()] = source
            return output
        if n.target is c10d.wait_tensor.default:
            output = self.env[n.args[0]]
            source = self.flying.pop(output.data_ptr(), None)
            return output if source is None else output.copy_(source * 2.0)
        if n in self.in_place:
            return self.env[n.args[0]].index_put_([self.env[i] for i in n.args[1]], self.env[n.args[2]])
        return super().run_node(n)


def _reinplaced(graph: fx.Graph) -> set[fx.Node]:
    """As Inductor does it: in place if nobody reads the memory later, and it is no input."""
    position = {node: i for i, node in enumerate(graph.nodes)}
    found = set()
    for node in graph.nodes:
        if node.target is not aten.index_put.default:
            continue
        family = [
            n for n in graph.nodes if ops.tensor(n) is not None and effects.storage(n) == effects.storage(node.args[0])
        ]
        later = any(position[user] > position[node] for member in family for user in member.users)
        if not later and all(member.op != "placeholder" for member in family):
            found.add(node)
    return found


def run(module: fx.GraphModule, *, in_place: bool) -> list[torch.Tensor]:
    torch.manual_seed(0)
    given_inputs = [torch.randn(4, 4, generator=torch.Generator().manual_seed(i)) * 0.1 for i in range(3)]
    outputs = Late(module, in_place=in_place).run(*given_inputs)
    return [*outputs, *given_inputs]


@settings(max_examples=examples(300), deadline=None)
@given(graphs())
def test_the_same_values_bit_for_bit(module: fx.GraphModule) -> None:
    expected = run(module, in_place=False)
    before = [node.name for node in module.graph.nodes]
    launches = [n.name for n in module.graph.nodes if comms.is_collective(n)]
    schedule_graph(module.graph, Constant(), MemoryLimits(memory_increase=1e6), may_be_written)
    assert sorted(node.name for node in module.graph.nodes) == sorted(before)
    for group in "01":
        order = [n.name for n in module.graph.nodes if comms.is_collective(n) and comms.process_group(n) == group]
        assert order == [name for name in launches if name in order]
    for left, right in zip(run(module, in_place=True), expected, strict=True):
        assert torch.equal(left.nan_to_num(), right.nan_to_num())


def simple() -> tuple[fx.GraphModule, dict[str, fx.Node]]:
    """A collective, a product that does not need it, and one that does."""
    graph = fx.Graph()
    x, w = graph.placeholder("x"), graph.placeholder("w")
    nodes = {}
    nodes["input"] = graph.call_function(aten.sin.default, (x,))
    nodes["launch"] = graph.call_function(c10d.all_reduce.default, (nodes["input"], "sum", "0"))
    nodes["wait"] = graph.call_function(c10d.wait_tensor.default, (nodes["launch"],))
    nodes["needs"] = graph.call_function(aten.mm.default, (nodes["wait"], w))
    nodes["free"] = graph.call_function(aten.mm.default, (x, w))
    graph.output((nodes["needs"], nodes["free"]))
    module = fx.GraphModule({}, graph)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        FakeTensorProp(module, mode).propagate(torch.zeros(4, 4), torch.zeros(4, 4))
    return module, nodes


def test_independent_compute_goes_between_launch_and_wait_and_is_pinned() -> None:
    module, nodes = simple()
    schedule = schedule_graph(module.graph, Constant(), MemoryLimits(1e6), may_be_written)
    order = list(module.graph.nodes)
    assert order.index(nodes["launch"]) < order.index(nodes["free"]) < order.index(nodes["wait"])
    assert (schedule.before.exposed, schedule.after.exposed) == (3.0, 2.0)
    assert pins(module.graph) == {nodes["wait"]: [nodes["free"]]}


def test_a_wait_is_pinned_to_an_attention_by_the_first_of_its_results() -> None:
    """Both are read at the end only, and the second one first."""
    module, nodes = simple()
    (output,) = module.graph.find_nodes(op="output")
    nodes["needs"].args = (nodes["wait"], nodes["wait"])
    (x, _) = module.graph.find_nodes(op="placeholder")
    with module.graph.inserting_before(output):
        heads = module.graph.call_function(aten.view.default, (x, [1, 1, 4, 4]))
        fused = aten._scaled_dot_product_flash_attention_for_cpu.default
        attention = module.graph.call_function(fused, (heads, heads, heads))
        second = module.graph.call_function(operator.getitem, (attention, 1))
        first = module.graph.call_function(operator.getitem, (attention, 0))
    output.args = ((nodes["needs"], second, first),)
    module.graph.erase_node(nodes["free"])
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        FakeTensorProp(module, mode).propagate(torch.zeros(4, 4), torch.zeros(4, 4))
    before = remember(module.graph, may_be_written)
    assert before.products == {first.name, nodes["needs"].name}
    schedule = schedule_graph(module.graph, Constant(), MemoryLimits(1e6), may_be_written)
    order = list(module.graph.nodes)
    assert order.index(nodes["launch"]) < order.index(attention) < order.index(nodes["wait"])
    assert order[order.index(attention) :][1:3] == [first, second]
    assert schedule.after.exposed < schedule.before.exposed
    assert pins(module.graph) == {nodes["wait"]: [first]}


def test_superfluous_waits_collapse() -> None:
    module, nodes = simple()
    with module.graph.inserting_after(nodes["wait"]):
        twice = module.graph.call_function(c10d.wait_tensor.default, (nodes["wait"],))
    with module.graph.inserting_after(twice):
        second = module.graph.call_function(c10d.wait_tensor.default, (nodes["launch"],))
    nodes["needs"].replace_input_with(nodes["wait"], twice)
    nodes["free"].replace_input_with(nodes["free"].args[0], second)
    assert normalize_collectives(module.graph).waits == 2
    assert launches_with_waits(module.graph) == {nodes["launch"]: [nodes["wait"]]}
    assert nodes["needs"].args[0] is nodes["wait"]
    assert nodes["free"].args[0] is nodes["wait"]


def test_all_to_alls_move_to_a_group_of_their_own() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    exchange = graph.call_function(c10d.all_to_all_single.default, (x, [2, 2], [2, 2], "0"))
    reduce = graph.call_function(c10d.all_reduce.default, (x, "sum", "0"))
    graph.output((exchange, reduce))
    assert normalize_collectives(graph, {"0": "9"}).moved == 1
    assert (comms.process_group(exchange), comms.process_group(reduce)) == ("9", "0")


@pytest.mark.parametrize("write_first", [True, False])
def test_a_write_and_a_flight_on_the_same_memory_do_not_cross(write_first: bool) -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    made = graph.call_function(aten.sin.default, (x,))
    if write_first:
        write = graph.call_function(aten.add_.Tensor, (made, x))
    launch = graph.call_function(c10d.all_reduce.default, (made, "sum", "0"))
    wait = graph.call_function(c10d.wait_tensor.default, (launch,))
    if not write_first:
        write = graph.call_function(aten.add_.Tensor, (made, x))
    graph.output((wait,))
    module = fx.GraphModule({}, graph)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        FakeTensorProp(module, mode).propagate(torch.zeros(4, 4))
    found = read_program(graph, Constant(), may_be_written)
    task = {node: found.program.tasks[i] for i, node in enumerate(found.nodes)}
    index = {node: i for i, node in enumerate(found.nodes)}
    if write_first:
        assert index[write] in task[launch].needs
    else:
        assert index[wait] in task[write].needs
