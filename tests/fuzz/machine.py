# SPDX-License-Identifier: Apache-2.0
"""Run an FX graph node by node, with chosen values replaced.

In:    a graph module and its arguments (which are never changed: each run gets copies).
Out:   `Run`: what each node computed, the outputs, and the inputs as the run leaves them.
Never: uses generated code, a pass, or a fake value.

A pinned node is computed as any other, and the result noted; its readers see the pinned value instead. Each random
node draws from a seed of its own (its name), so that runs that skip or add other nodes can be compared.
"""

from __future__ import annotations

import copy
import operator
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

from farskip_compile.passes.graph import effects


@dataclass
class Run:
    """One execution."""

    values: dict[fx.Node, Any]
    """What each node computed, as it was at that moment, whatever its readers saw."""
    outputs: Any
    inputs: list[Any]
    """The arguments behind the run: writes to inputs are a part of a graph's function."""

    def function(self) -> tuple[Any, ...]:
        """All that a caller can see."""
        return (self.outputs, *self.inputs)


def run_nodes(module: fx.GraphModule, arguments: Sequence[Any], pinned: Mapping[fx.Node, Any] | None = None) -> Run:
    """Execute the graph of `module`."""
    pinned = pinned or {}
    inputs = [_copied(value) for value in arguments]
    supply = iter(inputs)
    seen: dict[fx.Node, Any] = {}
    values: dict[fx.Node, Any] = {}
    attributes: dict[str, Any] = {}
    outputs: Any = None
    for node in module.graph.nodes:
        args = fx.map_arg(node.args, seen.__getitem__)
        kwargs = fx.map_arg(node.kwargs, seen.__getitem__)
        if node.op == "placeholder":
            value = next(supply)
        elif node.op == "get_attr":
            name = str(node.target)
            if name not in attributes:
                attributes[name] = _copied(operator.attrgetter(name)(module))
            value = attributes[name]
        elif node.op == "output":
            outputs = args[0]
            continue
        else:
            if effects.is_random(node):
                torch.manual_seed(zlib.crc32(node.name.encode()))
            if node.op == "call_method":
                value = getattr(args[0], node.target)(*args[1:], **kwargs)
            else:
                value = node.target(*args, **kwargs)
        values[node] = _copied(value)
        seen[node] = _copied(pinned[node]) if node in pinned else value
    return Run(values, outputs, inputs)


def _copied(value: Any) -> Any:
    return map_aggregate(value, lambda part: part.clone() if isinstance(part, torch.Tensor) else part)


def same(left: Any, right: Any) -> bool:
    """Equal bit for bit in shape, dtype and value; NaN equals NaN, and -0 equals 0."""
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        if left.shape != right.shape or left.dtype != right.dtype:
            return False
        if torch.equal(left, right):
            return True
        return left.is_floating_point() and torch.allclose(left, right, rtol=0.0, atol=0.0, equal_nan=True)
    if isinstance(left, tuple | list) and isinstance(right, tuple | list):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return bool(left == right)


def fingerprint(module: fx.GraphModule) -> list[tuple[Any, ...]]:
    """Everything about a graph that a pass could have changed, node by node; and the module's attributes."""
    nodes = [
        (
            node.name,
            node.op,
            node.target if isinstance(node.target, str) else id(node.target),
            str(fx.map_arg(node.args, lambda arg: arg.name)),
            str(fx.map_arg(dict(node.kwargs), lambda arg: arg.name)),
            tuple(sorted((key, id(value)) for key, value in node.meta.items())),
        )
        for node in module.graph.nodes
    ]
    attributes = [tuple(sorted([*module._parameters, *module._buffers, *module._modules]))]
    return [*nodes, *attributes]


class Unwritten(fx.GraphModule):
    """Has no code for its graph: writing it takes longer than most passes, and `run_nodes` needs none."""

    def recompile(self) -> None:
        """Write nothing."""


def duplicate(module: fx.GraphModule, kind: type[fx.GraphModule] = Unwritten) -> fx.GraphModule:
    """A module with a graph of its own and the same attributes; to be called it must be a `GraphModule`."""
    return kind(module, copy.deepcopy(module.graph))
