# SPDX-License-Identifier: Apache-2.0
"""What `GraphSnapshot` builds is the graph as it was, whatever has been done to it since."""

import contextlib

import torch
from hypothesis import given, settings
from torch import fx

from farskip_compile.errors import FarSkipError
from farskip_compile.passes.graph.graph_snapshot import GraphSnapshot
from farskip_compile.passes.normalize import normalize
from farskip_compile.passes.residual import read_table
from farskip_compile.passes.rewire import rewire
from farskip_compile.passes.rewire.request import ask
from farskip_compile.testing.strategies import capture, networks
from farskip_compile.testing.strategies.network import GeneratedNetwork


def state(graph):
    """All that a graph holds, nodes by name."""
    return [
        (
            node.op,
            node.name,
            str(node.target),
            str(node.args),
            str(node.kwargs),
            node.type,
            list(node.meta),
            [id(value) for value in node.meta.values()],
            id(getattr(node, "_dynamo_source", None)),
            sorted(user.name for user in node.users),
        )
        for node in graph.nodes
    ]


@settings(max_examples=20)
@given(network=networks())
def test_no_edit_reaches_a_backup(network: GeneratedNetwork):
    module = capture(network).module
    next(iter(module.graph.nodes))._dynamo_source = object()  # as Dynamo leaves it
    before = state(module.graph)
    backup = GraphSnapshot(module.graph)

    normalize(module)
    reading = read_table(module.graph)
    with contextlib.suppress(FarSkipError):  # not all have experts
        rewire(module, reading, ask(reading.table, "full"))
    for node in module.graph.nodes:
        node.meta["example_value"] = node.meta["one more"] = None
    assert state(module.graph) != before

    restored = backup.restore()
    restored.lint()
    assert state(restored) == before
    assert state(backup.restore()) == before  # as often as wanted


def test_the_arguments_of_a_call_are_flattened_as_before():
    def added(pair):
        return pair["one"] + pair["two"]

    values = {"one": torch.ones(2), "two": torch.ones(2)}
    module = fx.symbolic_trace(added, concrete_args={"pair": {"one": fx.PH, "two": fx.PH}})
    module.graph = GraphSnapshot(module.graph).restore()
    assert torch.equal(module(values), torch.full((2,), 2.0))


def edited() -> tuple[GraphSnapshot, fx.Graph]:
    def f(a, b):
        c = a + b
        d = c * 2
        e = d - a
        return e / c

    graph = fx.symbolic_trace(f).graph
    before = GraphSnapshot(graph)
    nodes = {node.name: node for node in graph.nodes}
    nodes["sub"].replace_input_with(nodes["a"], nodes["b"])
    nodes["truediv"].replace_input_with(nodes["sub"], nodes["mul"])
    graph.erase_node(nodes["sub"])
    return before, graph


def test_what_nobody_edited_is_unchanged():
    before, graph = edited()
    nodes = {node.name: node for node in graph.nodes}
    assert {node.name for node in before.unchanged(graph)} == {"a", "b", "add", "mul", "output"}

    nodes["mul"].args = (nodes["add"], 3)
    nodes["add"].target = torch.sub
    with graph.inserting_before(nodes["mul"]):
        graph.call_function(torch.neg, (nodes["a"],))
    assert {node.name for node in before.unchanged(graph)} == {"a", "b", "output"}
    nodes["a"].name = "c"
    assert before.unchanged(graph) == set()


def test_what_is_left_out_is_a_placeholder_where_it_is_taken():
    before, _ = edited()
    graph = before.restore(without={"a", "b", "add", "mul", "output"})
    graph.lint()
    assert [(node.op, node.name, node.args) for node in graph.nodes if node.op == "placeholder"] == [
        ("placeholder", "a", ()),
        ("placeholder", "add", ()),
        ("placeholder", "mul", ()),
    ]
    assert [str(node.args) for node in graph.nodes if node.op == "call_function"] == ["(mul, a)", "(sub, add)"]
