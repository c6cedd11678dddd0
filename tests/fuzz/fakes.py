# SPDX-License-Identifier: Apache-2.0
"""Fake values for a graph that Dynamo did not make: shapes, dtypes and shared memory, as Dynamo leaves them.

Contract: `set_fake_values` runs the graph once on fake tensors; each node that has a value gets it as `example_value`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch._dynamo.source import LocalSource
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from farskip_compile._compat.fakes import FakeTensorMode


def set_fake_values(
    module: fx.GraphModule, arguments: Sequence[torch.Tensor], *, symbolic: bool = False, sizes_of_data: bool = False
) -> None:
    """Run the graph of `module` on fake tensors.

    Args:
        module: its graph gets the values.
        arguments: for each placeholder.
        symbolic: the first two sizes of the first input are symbols.
        sizes_of_data: operators may give sizes that data decides, as `x[mask]`.
    """
    shape_env = ShapeEnv() if symbolic or sizes_of_data else None
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=shape_env)
    supply = iter(arguments)
    first = symbolic
    for node in module.graph.nodes:
        node.meta = {**node.meta} if node.op == "placeholder" else {}
        set_fake_value(mode, node, _given(module, node, supply), symbolic=first)
        first = False


def _given(module: fx.GraphModule, node: fx.Node, supply: Iterator[torch.Tensor]) -> torch.Tensor | None:
    if node.op == "get_attr":
        return operator.attrgetter(str(node.target))(module)
    return next(supply) if node.op == "placeholder" else None


def set_fake_value(mode: FakeTensorMode, node: fx.Node, given: torch.Tensor | None, *, symbolic: bool = False) -> None:
    """Give one node its value, from those of its arguments; `given`: the value of an input or an attribute."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda arg: arg.meta.get("example_value"))
    if node.op == "placeholder":
        assert given is not None
        value = _fake_input(mode, node, given, first=symbolic)
    elif node.op == "get_attr":
        value = mode.from_tensor(given, static_shapes=True)
    elif node.op == "output":
        return
    else:
        with mode:
            if node.op == "call_method":
                value = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            else:
                value = node.target(*args, **kwargs)  # type: ignore[operator]
    node.meta = {} if value is None else {"example_value": value}


def _fake_input(mode: FakeTensorMode, node: fx.Node, value: torch.Tensor, *, first: bool) -> Any:
    if first:
        dynamic = [DimDynamic.DYNAMIC, DimDynamic.DYNAMIC, DimDynamic.STATIC][: value.dim()]
        context = StatelessSymbolicContext(dynamic_sizes=dynamic, constraint_sizes=[None] * value.dim())
        return mode.from_tensor(value, symbolic_context=context, source=LocalSource(node.name))
    if isinstance(node.meta.get("example_value"), nn.Parameter):
        value = nn.Parameter(value, requires_grad=False)
    return mode.from_tensor(value, static_shapes=True)
