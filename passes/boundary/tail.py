# SPDX-License-Identifier: Apache-2.0
"""What is left to do of the stream when a graph ends: a small graph of its own, which the next reader runs.

A `StreamTail` makes the stream of its parts: of what is settled (all terms but those that the next graph leaves out),
and of what is still in flight. It begins with the waits for the latter.

    layer k:    ... combine launched ──► parts ──► tail: wait, give rows back, weigh, add ──► the stream, in layer k + 1

Contract: immutable, and interned: equal tails are one object, known by a key that is the same in every process and on
every rank, so that a graph can name it. Holds operators and constants, no tensor and no parameter. A tail that is
called runs as PyTorch code, under the autocast that it was compiled for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from farskip_compile._compat import OpOverload, OpOverloadPacket
from farskip_compile._compat.tensors import qualified_name
from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.passes.graph import user_calls
from farskip_compile.passes.residual.carried import KEY
from farskip_compile.passes.residual.tags import FLIGHT


@dataclass(frozen=True)
class CrossingFlight:
    """A collective whose result crosses a cut before it is waited for."""

    operator: str
    group: str

    def to_text(self) -> str:
        """`operator group`."""
        return f"{self.operator} {self.group}"


TailAutocast = tuple[str, torch.dtype] | None
"""Device type and type of an autocast that is on."""


@dataclass(frozen=True, eq=False)
class StreamTail:
    """Made by `intern`."""

    key: str
    module: fx.GraphModule
    """Placeholders are the parts, the base first; nodes say what they hold (`carried`) or how they come (`FLIGHT`)."""
    flights: tuple[CrossingFlight | None, ...]
    """For each part whether it comes in flight."""
    autocast: TailAutocast = None
    dtype: torch.dtype = field(default=torch.float32)
    """Of the stream."""

    def __call__(self, *parts: Any) -> torch.Tensor:
        """The stream of its parts."""
        if self.autocast is None:
            with torch.autocast(parts[0].device.type, enabled=False):
                return self._run(parts)
        device, dtype = self.autocast
        with torch.autocast(device, dtype):
            return self._run(parts)

    def _run(self, parts: Sequence[Any]) -> torch.Tensor:
        stream: torch.Tensor = self.module(*parts)
        return stream


@dataclass(frozen=True)
class Departure:
    """How the stream leaves a graph."""

    positions: tuple[int, ...] = ()
    """Of the stream among the outputs; empty if the stack ends in this graph."""
    tail: str = ""
    """Key of its tail; empty if it leaves as it is."""
    extra: int = 0
    """Outputs at the end that are parts."""
    apart: tuple[int, ...] = ()
    """Indices of the terms that leave apart."""
    stays: Mapping[str, str] = field(default_factory=dict)
    """Of these, by name: why they have landed."""
    open_sizes: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """Of further outputs: the dimensions whose sizes data decides."""
    came: str = ""
    """Key of the tail of the stream that came in; empty if it came as it is."""


_tails: dict[str, StreamTail] = {}


def intern(graph: fx.Graph, autocast: TailAutocast, dtype: torch.dtype) -> StreamTail:
    """The tail that `graph` describes."""
    flights = tuple(node.meta.get(FLIGHT) for node in graph.find_nodes(op="placeholder"))
    key = hashlib.sha256("\n".join([*_lines(graph), str(autocast), str(dtype)]).encode()).hexdigest()[:24]
    if key not in _tails:
        _tails[key] = StreamTail(key, fx.GraphModule({}, graph, "StreamTail"), flights, autocast, dtype)
    return _tails[key]


def tail_of(key: str) -> StreamTail:
    """The tail that `intern` gave this key, in this process."""
    return _tails[key]


def _lines(graph: fx.Graph) -> list[str]:
    number = {node: place for place, node in enumerate(graph.nodes)}

    def text(value: Any) -> str:
        if isinstance(value, fx.Node):
            return f"%{number[value]}"
        if isinstance(value, tuple | list):
            return f"[{', '.join(map(text, value))}]"
        if isinstance(value, dict):
            return str({key: text(one) for key, one in value.items()})
        if isinstance(value, slice):
            return f"slice{text([value.start, value.stop, value.step])}"
        return f"{type(value).__name__} {value!r}"

    return [
        f"{node.op} {_target(node)} {text(node.args)} {text(node.kwargs)} {node.meta.get(KEY)} {node.meta.get(FLIGHT)}"
        for node in graph.nodes
    ]


def _target(node: fx.Node) -> str:
    """Enough to tell functions apart, the same in every process."""
    target = node.target
    if node.op in ("placeholder", "output"):
        return ""
    if isinstance(target, str):
        return target
    if isinstance(target, OpOverload):
        return str(target.name())
    if isinstance(target, OpOverloadPacket):
        return qualified_name(target)
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    if name is None or "<" in name:
        raise UnsupportedPatternError(
            f"{target!r} is a part of what the next layer has to finish, and has no name by which ranks can compare it",
            way_out="define this function at the top level of a module, or compile the whole model",
            where=user_calls.where(node),
        )
    return f"{module}.{name}"


def run_fake(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """The fake value of `node`, from those of its arguments; to be called under their fake mode."""
    args: Sequence[Any]
    args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    call: Any = node.target
    return call(*args, **kwargs)
