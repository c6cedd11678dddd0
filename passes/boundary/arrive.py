# SPDX-License-Identifier: Apache-2.0
"""Write out what an earlier graph has left to do, and take off the marks where layers end.

In:    a Dynamo graph, with or without the marks of `markers`.
Out:   the same function without marks; where the stream came in cut, the nodes of its tail, which say what they hold
       (`carried`); a `Boundary`, which says whether the graph is a part of a stack that is cut there.
Never: changes a value.

Algorithm:
0. Open activation checkpoints: the marks may be inside.
1. Copy the tail of each arrival in front of it, and compute fake values for the copies from those of the parts.
2. Take off the marks at the end. A graph is a part of a stack if what they mark is returned, and nothing else happens
   to it here: in a graph of the whole model another layer follows.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from farskip_compile._compat.fake import fake_mode_of
from farskip_compile.errors import PartialModelError
from farskip_compile.passes.boundary.markers import is_arrival, is_departure
from farskip_compile.passes.boundary.tail import TailAutocast, run_fake, tail_of
from farskip_compile.passes.graph import ops, user_calls
from farskip_compile.passes.normalize.checkpoints import open_checkpoints
from farskip_compile.passes.normalize.closing import SELECTIVE
from farskip_compile.passes.residual.carried import KEY

INHERITED = ("recompute", "ac_graph_id", SELECTIVE, "stack_trace", "nn_module_stack")

UNMARKED: tuple[Any, ...] = (True, True, "", "")
"""What `depart` says where it is not told."""


@dataclass(frozen=True)
class Boundary:
    """Where a graph is cut off from the rest of its stack."""

    part: bool
    """Whether it is."""
    outputs: tuple[int, ...]
    """Outputs of the graph of which one is the stream."""
    here: bool | str
    """Whether the connectivity applies to this part; of one by table, what it says to it."""
    later: bool | str
    """And to the next one."""
    arrivals: int
    """Terms that came in apart."""
    checkpoints_opened: int
    plan: str = ""
    """Which layers of how many are rewired."""
    came: str = ""
    """Key of the tail that was written out."""


def write_boundary(module: fx.GraphModule, autocast: TailAutocast = None) -> Boundary:
    """Edit `module` in place; `autocast` is what it is compiled under.

    Raises:
        PartialModelError: two cut streams come in, or one was cut under another autocast.
    """
    opened = open_checkpoints(module)  # 0
    arrivals = _distinct([node for node in module.graph.nodes if is_arrival(node)])
    if len(arrivals) > 1:
        raise PartialModelError(
            "two residual streams come into one compiled layer, both with terms in flight",
            way_out="compile the layers that both come from, and this one, as one graph",
            where=user_calls.where(arrivals[1]),
        )
    came = str(arrivals[0].args[0]) if arrivals else ""
    terms = sum(_write(module.graph, node, autocast) for node in arrivals)  # 1
    departures = [node for node in module.graph.nodes if is_departure(node)]
    (output,) = module.graph.find_nodes(op="output")
    returned = list(output.args[0])
    places = tuple(place for place, value in enumerate(returned) if value in departures)
    whole = not departures or any(user is not output for node in departures for user in node.users)
    mark: tuple[Any, ...] = tuple(departures[0].args[1:]) if departures else ()
    here, later, _, plan = mark + UNMARKED[len(mark) :]
    for node in departures:  # 2
        node.replace_all_uses_with(node.args[0])
        module.graph.erase_node(node)
    part = bool(arrivals) or not whole
    return Boundary(part, () if whole else places, here, later, terms, opened, str(plan), came)


def _distinct(arrivals: list[fx.Node]) -> list[fx.Node]:
    """One mark for each stream that comes in: a hook in the same graph may have asked for it, too."""
    first: dict[tuple[Any, ...], fx.Node] = {}
    for node in arrivals:
        known = first.setdefault(node.args, node)
        if known is not node:
            node.replace_all_uses_with(known)
            node.graph.erase_node(node)
    return list(first.values())


def _write(graph: fx.Graph, marker: fx.Node, autocast: TailAutocast) -> int:
    tail, parts = tail_of(str(marker.args[0])), marker.args[1:]
    if tail.autocast != autocast:
        raise PartialModelError(
            f"a layer left its last sum to this one under autocast {tail.autocast}, and this one runs under {autocast}",
            way_out="run both under the same autocast, or compile the whole model",
            where=user_calls.where(marker),
        )
    copies: dict[fx.Node, Any] = {}
    values: dict[fx.Node, Any] = {}
    left = iter(parts)
    mode = fake_mode_of(value for value in [ops.tensor(marker)] if value is not None)
    # without gradients: around a checkpoint, what autograd saves here would be counted as the layer's
    with graph.inserting_before(marker), mode or nullcontext(), torch.no_grad():
        for node in tail.module.graph.nodes:
            if node.op == "placeholder":
                part: Any = next(left)
                copies[node] = part
                values[node] = ops.fake(part) if isinstance(part, fx.Node) else part
                if KEY in node.meta:
                    part.meta[KEY] = node.meta[KEY]
            elif node.op != "output":
                copy = copies[node] = graph.node_copy(node, copies.__getitem__)
                copy.meta.update({key: marker.meta[key] for key in INHERITED if key in marker.meta})
                copy.meta["example_value"] = values[node] = run_fake(node, values)
    (output,) = tail.module.graph.find_nodes(op="output")
    marker.replace_all_uses_with(copies[output.args[0]])
    graph.erase_node(marker)
    return sum(len(node.meta[KEY].places) for node in tail.module.graph.nodes if KEY in node.meta)
