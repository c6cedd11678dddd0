# SPDX-License-Identifier: Apache-2.0
"""Waits that are left to the next graph, and waits for what an earlier one has launched."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx
from torch._subclasses import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

import farskip_compile.compiler.carrier.landing  # noqa: F401 (an operator)
from farskip_compile.compiler.config import FarSkipConfig, resolve
from farskip_compile.compiler.inductor_passes.plan import Plan
from farskip_compile.compiler.inductor_passes.post_grad import schedule_post_grad
from farskip_compile.costs.profile import load_profile
from farskip_compile.errors import VerificationError
from farskip_compile.passes.graph import comms, ops
from farskip_compile.passes.residual.tags import CUSTOM, DEPARTS, FLIGHT, LANDED
from farskip_compile.passes.schedule.from_graph import read_program
from farskip_compile.passes.schedule.graph import pins, schedule_graph
from farskip_compile.passes.schedule.in_flight import (
    arrivals,
    departs,
    land_if_recomputed,
    landed,
    leave_in_flight,
)
from farskip_compile.passes.schedule.program import TaskRole
from farskip_compile.passes.schedule.search import MemoryLimits
from farskip_compile.verify.in_flight import returned, verify_in_flight
from tests.costs.traced import fake_ranks
from tests.passes.schedule.test_graph import Constant

aten, c10d = torch.ops.aten, torch.ops._c10d_functional


def layer(*, read: bool = False, backward: bool = False) -> fx.Graph:
    """What came in flight is waited for first; products; a launch whose wait is returned."""
    graph = fx.Graph()
    part, x = graph.placeholder("tangents_1" if backward else "primals_1"), graph.placeholder("primals_2")
    arrived = graph.call_function(c10d.wait_tensor.default, (part,))
    arrived.meta[CUSTOM] = {FLIGHT: "all_to_all_single 0"}
    first = graph.call_function(aten.mm.default, (x, x))
    second = graph.call_function(aten.mm.default, (first, arrived))
    launch = graph.call_function(c10d.all_reduce.default, (second, "sum", "0"))
    wait = graph.call_function(c10d.wait_tensor.default, (launch,))
    wait.meta[CUSTOM] = {DEPARTS: "all_reduce 0"}
    third = graph.call_function(aten.mm.default, (first, first))
    more = graph.call_function(aten.sin.default, (wait,)) if read else third
    graph.output((third, wait, more))
    module = fx.GraphModule({}, graph)
    with FakeTensorMode() as mode:
        FakeTensorProp(module, mode).propagate(torch.zeros(4, 4), torch.zeros(4, 4))
    return module.graph


def names(graph: fx.Graph) -> list[str]:
    return [node.name for node in graph.nodes]


@pytest.mark.parametrize("training", [False, True])
def test_a_wait_that_only_the_next_graph_needs_is_left_to_it(training: bool) -> None:
    graph = layer()
    before = returned(graph)
    assert leave_in_flight(graph, training) == 1
    verify_in_flight(graph, before)
    assert "wait_tensor_default_1" not in names(graph)
    (launch,) = (node for node in graph.nodes if node.target is c10d.all_reduce.default)
    assert departs(launch)
    assert next(iter(graph.find_nodes(op="output"))).args[0][1] is launch
    assert bool(graph.find_nodes(op="call_function", target=land_if_recomputed())) is training


@pytest.mark.parametrize("skip", [(), ("in_flight",)])
def test_the_pass_can_be_left_out(skip: tuple[str, ...]) -> None:
    graph = layer(backward=True)
    (launch,) = graph.find_nodes(op="call_function", target=c10d.all_reduce.default)
    with fake_ranks(2) as world:
        launch.update_arg(2, world.group_name)
        config = resolve(FarSkipConfig(check_order=False, disable_passes=skip))
        report = schedule_post_grad(graph, Plan(config=config, profile=load_profile("cpu-gloo")))
    assert report.left_in_flight == (0 if skip else 1)
    assert ("wait_tensor_default_1" in names(graph)) is bool(skip)


def test_a_wait_that_is_read_stays() -> None:
    graph = layer(read=True)
    assert leave_in_flight(graph, training=True) == 0
    assert "wait_tensor_default_1" in names(graph)


def returning(make: Callable[[fx.Graph, fx.Node], fx.Node]) -> fx.Graph:
    """A launch whose wait leaves, returned as `make` says."""
    graph = fx.Graph()
    launch = graph.call_function(c10d.all_reduce.default, (graph.placeholder("primals_1"), "sum", "0"))
    wait = graph.call_function(c10d.wait_tensor.default, (launch,))
    wait.meta[CUSTOM] = {DEPARTS: "all_reduce 0"}
    graph.output((make(graph, wait),))
    module = fx.GraphModule({}, graph)
    with FakeTensorMode() as mode:
        FakeTensorProp(module, mode).propagate(torch.zeros(4, 4))
    return module.graph


def copied(graph: fx.Graph, wait: fx.Node) -> fx.Node:
    view = graph.call_function(aten.reshape.default, (wait, [2, 2, 4]))
    return graph.call_function(aten.clone.default, (view,), {"memory_format": torch.contiguous_format})


def test_of_a_copy_in_another_shape_a_view_is_returned_in_flight() -> None:
    graph = returning(copied)
    before = returned(graph)
    assert leave_in_flight(graph, training=False) == 1
    verify_in_flight(graph, before)
    assert not landed(graph)
    assert [node.target for node in graph.nodes][1:-1] == [c10d.all_reduce.default, aten.view.default]
    (view,) = graph.find_nodes(op="call_function", target=aten.view.default)
    assert ops.tensor(view).shape == (2, 2, 4)
    with graph.inserting_after(view):
        graph.call_function(aten.sin.default, (view,))
    with pytest.raises(VerificationError, match="for which nothing waits any more"):
        verify_in_flight(graph, before)


def test_the_proof_notices_another_shape() -> None:
    graph = returning(copied)
    before = returned(graph)
    leave_in_flight(graph, training=False)
    (view,) = graph.find_nodes(op="call_function", target=aten.view.default)
    view.meta["val"] = ops.tensor(view).view(4, 4)
    with pytest.raises(VerificationError, match="in another shape"):
        verify_in_flight(graph, before)


def test_what_is_put_together_or_computed_here_has_landed() -> None:
    graph = returning(lambda graph, wait: graph.call_function(aten.cat.default, ([wait, wait],)))
    assert leave_in_flight(graph, training=False) == 0
    assert [comms.is_wait(one) for one in landed(graph)] == [True]
    graph = returning(lambda graph, wait: graph.call_function(aten.sin.default, (wait,)))
    assert leave_in_flight(graph, training=False) == 0
    assert not landed(graph)


def test_the_proof_notices_what_nobody_waits_for() -> None:
    graph = layer()
    before = returned(graph)
    wait = next(node for node in graph.nodes if node.name == "wait_tensor_default_1")
    wait.replace_all_uses_with(wait.args[0])
    graph.erase_node(wait)
    verify_in_flight(graph, before)
    (launch,) = (node for node in graph.nodes if node.target is c10d.all_reduce.default)
    with graph.inserting_after(launch):
        graph.call_function(aten.sin.default, (launch,))
    with pytest.raises(VerificationError, match="for which nothing waits any more"):
        verify_in_flight(graph, before)


def test_the_proof_notices_a_wait_that_the_next_graph_does_not_make() -> None:
    graph = layer()
    wait = next(node for node in graph.nodes if node.name == "wait_tensor_default_1")
    del wait.meta[CUSTOM]
    before = returned(graph)
    wait.replace_all_uses_with(wait.args[0])
    graph.erase_node(wait)
    with pytest.raises(VerificationError, match="in place of 'wait_tensor_default_1'"):
        verify_in_flight(graph, before)


def test_what_came_in_is_a_flight_of_the_program() -> None:
    graph = layer()
    leave_in_flight(graph, training=True)
    found = read_program(graph, Constant())
    tasks = {task.name: task for task in found.program.tasks}
    assert found.program.tasks[0].role is TaskRole.LAUNCH
    assert found.program.tasks[0].channel == "0"
    assert tasks["wait_tensor_default"].role is TaskRole.WAIT
    assert tasks["wait_tensor_default"].launch == 0
    assert tasks["all_reduce_default"].role is TaskRole.LAUNCH
    assert all(0 in task.needs for task in found.program.tasks[1:] if not set(task.needs) - {0})


def test_its_wait_comes_after_what_hides_it_and_is_pinned() -> None:
    graph = layer()
    leave_in_flight(graph, training=True)
    placeholders = [node.name for node in graph.find_nodes(op="placeholder")]
    schedule_graph(graph, Constant(), MemoryLimits(memory_increase=10.0))
    order = names(graph)
    assert order[: len(placeholders)] == placeholders
    assert order.index("mm_default") < order.index("wait_tensor_default")
    (wait,) = arrivals(graph)
    assert "mm_default" in {pin.name for pin in pins(graph)[wait]}


def test_what_has_landed_takes_no_time() -> None:
    graph = layer()
    (wait,) = arrivals(graph)
    seconds = [read_program(graph, Constant()).program.tasks[0].seconds]
    wait.meta[CUSTOM] = {**wait.meta[CUSTOM], LANDED: "yes"}
    seconds.append(read_program(graph, Constant()).program.tasks[0].seconds)
    assert seconds == [2.0, 0.0]


def test_in_a_backward_graph_nothing_arrives() -> None:
    graph = layer(backward=True)
    assert arrivals(graph) == {}
    first, *_ = read_program(graph, Constant()).program.tasks
    assert first.role is not TaskRole.LAUNCH
