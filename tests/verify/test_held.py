# SPDX-License-Identifier: Apache-2.0
"""Marking the collectives of custom operators changes their waits alone, and these hold what is in flight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from farskip_compile.compiler.inductor_passes import wait_for  # noqa: F401 (an operator)
from farskip_compile.errors import UnsupportedPatternError, VerificationError
from farskip_compile.passes.graph.declared import Declared
from farskip_compile.passes.schedule.custom_collectives import mark_custom_collectives
from farskip_compile.verify.held import own_waits, verify_held

aten = torch.ops.aten
LIBRARY = torch.library.Library("farskip_tests_held", "FRAGMENT")
LIBRARY.define("start(Tensor x, Tensor y, str group_name) -> (Tensor, Tensor)")
LIBRARY.define("end(Tensor x) -> Tensor")
OPERATORS = torch.ops.farskip_tests_held
pytestmark = pytest.mark.usefixtures("two_ranks")  # whose group is called "0"

FACTS = (Declared("farskip_tests_held::start", "exchange", wait="farskip_tests_held::end"),)
MODE = FakeTensorMode()


def marked(change: Callable[[dict[str, fx.Node]], None] | None = None, *, prepare: Any = None) -> None:
    """Two results are waited for, and both inputs are in flight; `change` comes after the marking."""
    graph = fx.Graph()
    nodes = {name: graph.placeholder(name) for name in "xy"}

    def add(name: str, target: Any, *args: Any) -> None:
        nodes[name] = graph.call_function(target, args)

    add("launch", OPERATORS.start.default, nodes["x"], nodes["y"], "0")
    add("first", getitem, nodes["launch"], 0)
    add("second", getitem, nodes["launch"], 1)
    add("wait", OPERATORS.end.default, nodes["first"])
    add("other", OPERATORS.end.default, nodes["second"])
    add("sum", aten.add.Tensor, nodes["wait"], nodes["other"])
    graph.output(nodes["sum"])
    for node in graph.nodes:
        value = MODE.from_tensor(torch.empty(4))
        node.meta["val"] = (value, value) if node is nodes["launch"] else value
    if prepare is not None:
        prepare(nodes)
    before = own_waits(graph, FACTS)
    assert mark_custom_collectives(graph, FACTS) == 2
    assert nodes["wait"].args[1] == [nodes["x"], nodes["y"], nodes["second"]]
    if change is not None:
        change(nodes)
    verify_held(graph, before)


def getitem(values: Any, place: int) -> Any:
    return values[place]


def test_waits_hold_the_inputs_and_the_other_results() -> None:
    marked()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda nodes: nodes["wait"].update_arg(1, [nodes["x"], nodes["second"]]), "it does not hold .*'y'"),
        (lambda nodes: nodes["wait"].update_arg(1, [nodes["x"], nodes["y"]]), "it does not hold .*'getitem_1'"),
        (lambda nodes: nodes["wait"].update_arg(0, nodes["second"]), "it does not wait for what"),
        (lambda nodes: nodes["wait"].update_arg(2, "other::end"), "it calls other::end, and was a call of"),
        (lambda nodes: nodes["sum"].update_arg(1, nodes["wait"]), "it was changed, and is not a wait"),
        (lambda nodes: setattr(nodes["sum"], "target", aten.sub.Tensor), "it was changed, and is not a wait"),
        (lambda nodes: nodes["sum"].graph.call_function(aten.sin.default, (nodes["x"],)), "added or removed a node"),
        (lambda nodes: setattr(nodes["other"], "target", aten.sin.default), "it does not wait for what"),
    ],
)
def test_anything_else_is_not_delivered(change: Any, message: str) -> None:
    with pytest.raises(VerificationError, match=message):
        marked(change)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda nodes: nodes["wait"].update_arg(0, nodes["x"]), "anything but one tensor that its launch"),
        (lambda nodes: setattr(nodes["wait"], "args", (nodes["first"], 3)), "anything but one tensor that its launch"),
        (lambda nodes: nodes["launch"].update_arg(2, ""), "none of its parameters is the name of a process group"),
    ],
)
def test_what_was_not_declared_right_is_refused(prepare: Any, message: str) -> None:
    with pytest.raises(UnsupportedPatternError, match=message):
        marked(prepare=prepare)
