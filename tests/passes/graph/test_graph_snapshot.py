"""What `Backup` builds is the graph as it was, whatever has been done to it since."""

import contextlib

import torch
from hypothesis import given, settings
from torch import fx

from farskip_compile.errors import FarSkipError
from farskip_compile.passes.graph.graph_snapshot import Backup
from farskip_compile.passes.normalize import normalize
from farskip_compile.passes.residual import read_table
from farskip_compile.passes.rewire import rewire
from farskip_compile.passes.rewire.request import ask
from farskip_compile.testing.strategies import Network, capture, networks


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
def test_no_edit_reaches_a_backup(network: Network):
    module = capture(network).module
    next(iter(module.graph.nodes))._dynamo_source = object()  # as Dynamo leaves it
    before = state(module.graph)
    backup = Backup(module.graph)

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
    module.graph = Backup(module.graph).restore()
    assert torch.equal(module(values), torch.full((2,), 2.0))
