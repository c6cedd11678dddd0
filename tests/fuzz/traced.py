# SPDX-License-Identifier: Apache-2.0
"""A generated decoder as a graph, without Dynamo, which takes longer than all passes together.

Contract: `trace` writes a node for each call and each statement that changes a tensor, as Dynamo does: `x[m] = v` is
`operator.setitem`, `x += y` is `operator.iadd`. Parameters are attributes of the module. Shapes are those of the
arguments, and each node has a fake value.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from farskip_compile._compat.fakes import FakeTensorMode
from tests.fuzz.fakes import set_fake_value

ATTRIBUTES = ("mT", "T", "data")


class Statements(fx.Proxy):
    """A proxy whose statements are recorded, and whose shape is known."""

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __getattr__(self, name: str) -> Any:
        if name == "shape":
            return self.node.meta["example_value"].shape
        if name in ATTRIBUTES:
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return super().__getattr__(name)

    def __iter__(self) -> Iterator[Any]:
        return iter([self[index] for index in range(len(self.node.meta["example_value"]))])


def _in_place(function: Any) -> Any:
    def method(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _function in (operator.iadd, operator.isub, operator.imul, operator.itruediv):
    setattr(Statements, f"__{_function.__name__}__", _in_place(_function))


class _Tracer(fx.Tracer):
    def __init__(self, model: nn.Module, arguments: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.arguments, self.state = iter(arguments), dict(model.named_parameters())
        self.mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return False

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Statements(node, self)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, *args, **kwargs)
        given = next(self.arguments) if kind == "placeholder" else self.state.get(str(node.target))
        set_fake_value(self.mode, node, given)
        return node


def trace(model: nn.Module, arguments: Sequence[torch.Tensor]) -> fx.GraphModule:
    """The graph of `model`, which returns a tuple, as Dynamo's graphs do."""
    graph = _Tracer(model, arguments).trace(model)
    output = next(iter(reversed(graph.nodes)))
    if not isinstance(output.args[0], tuple):
        output.args = ((output.args[0],),)
    else:
        output.meta["returns"] = output.args[0]
    return fx.GraphModule(model, graph)
