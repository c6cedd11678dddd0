# SPDX-License-Identifier: Apache-2.0
"""Which parameters a Dynamo graph shows, and which of them the sub-blocks of the residual stack use.

In:    a graph as a `Reading`.
Out:   `GraphParameters`.
Never: changes the graph; guards on a symbolic size.

Algorithm (linear in the graph): a parameter is a placeholder with a name; from the nodes of the sub-blocks and of the
sum itself walk back through what is made of parameters and buffers only, perhaps in a shape that depends on the input.
The embedding is not a sub-block.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from farskip_compile._compat.modules import parameter_itself, parameter_name
from farskip_compile.manifest.lost import newly_initialised
from farskip_compile.passes.graph import ops
from farskip_compile.passes.graph.walk import walk_back
from farskip_compile.passes.residual import Reading
from farskip_compile.passes.residual.stream import Stream

GraphShape = tuple[int | None, ...]
"""None for a size that is symbolic."""


@dataclass(frozen=True)
class GraphParameters:
    """Parameters by the names under which the traced code reached them."""

    shapes: Mapping[str, GraphShape]
    """All of them, in graph order; of a distributed tensor the shape of the whole."""
    used: tuple[str, ...]
    """Those that sub-blocks use, in graph order."""
    new: frozenset[str] = frozenset()
    """Names of the parameters that transformers initialised although it loaded others from a checkpoint."""


def graph_parameters(reading: Reading) -> GraphParameters:
    """Return the parameters in the graph of `reading`."""
    stream = reading.stream
    names: dict[fx.Node, str] = {}
    shapes: dict[str, GraphShape] = {}
    for node in stream.order:
        if node.op != "placeholder":
            continue
        name, value = parameter_name(node), ops.tensor(node)
        if name is not None and value is not None:
            names[node] = sys.intern(name)  # reports of many compiles hold the same names
            shapes[names[node]] = tuple(size if isinstance(size, int) else None for size in value.shape)
    inside = [node for region in reading.regions for node in region.owned]
    inside += [node for node in stream.tree if node is not stream.base]
    read = [arg for node in inside for arg in stream.inputs(node)]
    held = _held(stream)
    seen = set(walk_back(read, lambda node: node not in held, stream.inputs))
    used = tuple(name for node, name in names.items() if node in seen)
    new = newly_initialised({name: parameter_itself(node) for node, name in names.items()})
    return GraphParameters(shapes, used, frozenset(new))


def _held(stream: Stream) -> set[fx.Node]:
    """Return the tensors that are computed from parameters and buffers alone."""
    held = set(stream.flow.constant)
    for node in stream.order:
        if node in held or not node.op.startswith("call"):
            continue
        data = [arg for arg in stream.inputs(node) if ops.tensor(arg) is not None]
        if data and all(arg in held for arg in data):
            held.add(node)
    return held
