# SPDX-License-Identifier: Apache-2.0
"""Values of nodes in an account: views, lists of them, what is no tensor, and constants as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from farskip_compile._compat.fake import fake_mode_of
from farskip_compile.passes.graph.graph_snapshot import RecordedNode
from farskip_compile.verify.normalized.memory import View


@dataclass(frozen=True, slots=True)
class OpaqueValue:
    """The value of a node that is no tensor: a size, a flag, an object."""

    number: int
    fake: Any = None


def mapped(argument: Any, values: Mapping[Any, Any]) -> Any:
    """Return `argument`, the values of nodes in place of nodes, and tuples in place of lists."""
    if isinstance(argument, fx.Node):
        return values[argument]
    if isinstance(argument, tuple | list):
        return tuple(mapped(one, values) for one in argument)
    if isinstance(argument, dict):
        return {key: mapped(one, values) for key, one in argument.items()}
    if isinstance(argument, slice):
        return slice(*(mapped(one, values) for one in (argument.start, argument.stop, argument.step)))
    return argument


def leaves(value: Any) -> Iterator[Any]:
    """Yield what `value` consists of, in order."""
    if isinstance(value, tuple | list):
        for one in value:
            yield from leaves(one)
    elif isinstance(value, dict):
        for one in value.values():
            yield from leaves(one)
    elif isinstance(value, slice):
        yield from leaves((value.start, value.stop, value.step))
    else:
        yield value


def fake_values(value: Any) -> Any:
    """Return the fake values of `value`, which may be called."""
    if isinstance(value, View):
        fake = value.fake
        return fake if getattr(fake, "fake_mode", None) is not None else torch.empty_like(fake, device="meta")
    if isinstance(value, OpaqueValue):
        return value.fake
    if isinstance(value, tuple | list):
        return tuple(map(fake_values, value))
    if isinstance(value, dict):
        return {key: fake_values(one) for key, one in value.items()}
    if isinstance(value, slice):
        return slice(*map(fake_values, (value.start, value.stop, value.step)))
    return value


def with_fake_values(graph: fx.Graph, given: Mapping[fx.Node, Any]) -> Iterator[fx.Node | RecordedNode]:
    """Yield the nodes of `graph`, with the fake values that they have for the values `given` for its placeholders."""
    known: dict[fx.Node, Any] = {node: fake_values(value) for node, value in given.items()}
    mode = fake_mode_of(one for one in known.values() if isinstance(one, torch.Tensor))
    for node in graph.nodes:
        if node.op not in ("call_function", "call_method"):
            yield node
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
        with mode or nullcontext(), torch.no_grad():
            target: Any = node.target
            called = getattr(args[0], target) if node.op == "call_method" else target
            known[node] = called(*(args[1:] if node.op == "call_method" else args), **kwargs)
        yield RecordedNode(
            node, node.op, node.name, node.target, node.args, node.kwargs, {"example_value": known[node]}
        )
