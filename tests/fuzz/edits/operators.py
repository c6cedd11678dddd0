# SPDX-License-Identifier: Apache-2.0
"""Operators that a pass may not expect, bystanders, other orders, and what a graph may lack."""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import fx

from farskip_compile.testing.strategies.network import WIDTH
from tests.fuzz import custom_ops  # noqa: F401  registers them
from tests.fuzz.edits.registry import edit
from tests.fuzz.sheet import Sheet


@edit
def dropped_out(sheet: Sheet) -> None:
    node = sheet.any_float()
    with sheet.behind(node):
        arguments = sheet.rng.choice([(0.5, True, False), (0.0, True, False), (0.5, False, False), (0.5, True, True)])
        new = sheet.call(F.dropout, node, *arguments)
    sheet.feed(node, new)


@edit
def dead_code(sheet: Sheet) -> None:
    node = sheet.any_float()
    with sheet.somewhere_behind(node):
        other = sheet.call(operator.add, node, sheet.call("clone", node))
        sheet.call(operator.add, sheet.call(torch.tanh, other), node)
        if sheet.rng.random() < 0.5:
            sheet.call("add_", sheet.call("clone", node), 1.0)


@edit
def through_an_unknown_operator(sheet: Sheet) -> None:
    node = sheet.any_float()
    with sheet.behind(node):
        packet = sheet.rng.random() < 0.5
        if sheet.rng.random() < 0.5:
            op = torch.ops.farskip_fuzz.blend
            other = sheet.rng.choice(list(node.all_input_nodes))
            other = other if sheet.like_stream(other) and _same_shape(other, node) else node
            new = sheet.call(op if packet else op.default, *sheet.rng.sample([node, other], 2))
        else:
            op = torch.ops.farskip_fuzz.parts
            both = sheet.call(op if packet else op.default, node)
            new = sheet.call(operator.add, *(sheet.call(operator.getitem, both, index) for index in range(2)))
    sheet.feed(node, new)


@edit
def through_an_operator_with_several_results(sheet: Sheet) -> None:
    node = sheet.any_float()
    with sheet.behind(node):
        how = sheet.rng.randrange(3)
        if how == 0:
            new = sheet.call(operator.getitem, sheet.call(torch.sort, node, -1), 0)
        elif how == 1:
            moments = sheet.call(torch.var_mean, node, -1, keepdim=True)
            new = sheet.call(operator.sub, node, sheet.call(operator.getitem, moments, 1))
        else:
            largest = sheet.call(operator.getitem, sheet.call(torch.max, node, -1, keepdim=True), 0)
            new = sheet.call(operator.add, node, largest)
    sheet.feed(node, new)


@edit
def a_constant_is_added(sheet: Sheet) -> None:
    node = sheet.any_float()
    shape = tuple(node.meta["example_value"].shape)
    with sheet.behind(node):
        how = sheet.rng.randrange(6)
        if how == 0:
            other = sheet.constant(torch.linspace(-1, 1, WIDTH, dtype=torch.float64))
        elif how == 1:
            other = sheet.constant(torch.linspace(-1, 1, WIDTH, dtype=torch.float64).expand(shape).clone())
        elif how == 2:
            other = sheet.call(torch.ones, shape, dtype=torch.float64)
        elif how == 3:
            other = sheet.call(torch.zeros_like, node)
            sheet.hides = True  # it looks as if it read the value
        elif how == 4:
            other = sheet.constant(torch.tensor(0.5, dtype=torch.float64), parameter=False)
        else:
            other = 0.125
        function = sheet.rng.choice([operator.add, torch.sub, torch.mul if how != 3 else torch.add])
        new = sheet.call(function, *((node, other) if isinstance(other, float) else sheet.rng.sample([node, other], 2)))
    sheet.feed(node, new)


@edit
def moved_back(sheet: Sheet) -> None:
    """Pure nodes stand as late as possible: Dynamo's order is that of the source, which may be any."""
    nodes = [n for n in sheet.graph.nodes if n.op.startswith("call")]
    for node in sheet.rng.sample(nodes, min(len(nodes), 12)):
        if not node.users:
            continue
        order = sheet.order
        first = min(node.users, key=order.__getitem__)
        first.prepend(node)


@edit
def a_second_stack(sheet: Sheet) -> None:
    """The whole computation once more, beside the first or behind it."""
    body = [node for node in sheet.graph.nodes if node.op not in ("placeholder", "output")]
    copies: dict[fx.Node, fx.Node] = {}
    behind = sheet.rng.random() < 0.5
    made = [n for n in sheet.graph.nodes if sheet.like_stream(n)]
    start = next(n for n in made if n.op.startswith("call") or n.name == "inputs")
    outputs = list(sheet.output.args[0])
    end = sheet.pick([n for n in sheet.floats() if _same_shape(n, start)][-3:]) if behind else start
    with sheet.graph.inserting_before(sheet.output):
        for node in body:
            if behind and node is start:
                copies[node] = end
                continue
            copies[node] = sheet.graph.node_copy(
                node, lambda arg: copies.get(arg, end if behind and arg is start else arg)
            )
    sheet.output.args = ((*outputs, *(copies.get(out, out) for out in outputs)),)


@edit
def switched(sheet: Sheet) -> None:
    """Gradients are switched off and on again in the middle."""
    node = sheet.any_float()
    with sheet.behind(node):
        sheet.call(torch._C._set_grad_enabled, False)
        new = sheet.call("detach", node)
        sheet.call(torch._C._set_grad_enabled, True)
    sheet.feed(node, new)


@edit
def fake_values_lost(sheet: Sheet) -> None:
    """Not Dynamo's doing, but another backend's in front of ours could drop them."""
    nodes = [node for node in sheet.graph.nodes if node.op != "output"]
    count = sheet.rng.choice([1, 1, 3, len(nodes)])
    sheet.without_meta += sheet.rng.sample(nodes, min(count, len(nodes)))


def _same_shape(left: fx.Node, right: fx.Node) -> bool:
    a, b = left.meta.get("example_value"), right.meta.get("example_value")
    return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and a.shape == b.shape
