# SPDX-License-Identifier: Apache-2.0
"""Post-grad: what a part of a model leaves to the next one is launched here and not waited for.

In:    an ATen graph before it is scheduled; waits that `depart` left to the next graph say so, through differentiation.
Out:   the same graph, which returns what such a wait was for, in flight; where it returned a copy in another shape, a
       view in that shape. In a forward graph of a training step, the operator `land_if_recomputed` stands before the
       end: where a checkpoint runs this graph again, nobody will wait for what it returns.
Never: drops a wait whose result anything here reads.

`arrivals` are the other side: waits for what came in flight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from farskip_compile.passes.graph import comms, ops
from farskip_compile.passes.graph.walk import walk_back
from farskip_compile.passes.residual.tags import CUSTOM, DEPARTS, FLIGHT, LANDED

KEEP_ORDER = frozenset(["clone", "view", "reshape", "_unsafe_view"])
COPY = torch.ops.aten.copy.default
"""What a write into memory becomes: its second argument, in the shape of the first."""
MOVES = KEEP_ORDER | {"cat", "slice", "split_with_sizes", "getitem", "copy"}


def leave_in_flight(graph: fx.Graph, training: bool) -> int:
    """Edit `graph` in place; `training`: it is the forward graph of a training step. Returns how many waits it left."""
    (output,) = graph.find_nodes(op="output")
    left: list[fx.Node] = []
    for returned in dict.fromkeys(output.all_input_nodes):
        path = _copies(returned, output)
        wait = path[-1] if path else None
        if wait is None or not comms.is_wait(wait) or DEPARTS not in wait.meta.get(CUSTOM, {}):
            continue
        (flying,) = wait.all_input_nodes
        output.replace_input_with(returned, _in_the_shape_of(returned, flying) if len(path) > 1 else flying)
        for node in path:
            graph.erase_node(node)
        left.append(flying)
    launched = [one for one in left if one.op != "placeholder"]
    for one in launched:
        one.meta[CUSTOM] = {**one.meta.get(CUSTOM, {}), DEPARTS: "launched"}
    if launched and training:
        with graph.inserting_before(output):
            graph.call_function(land_if_recomputed(), (launched,))
    return len(left)


def landed(graph: fx.Graph) -> list[fx.Node]:
    """The waits that were to be left to the next graph and are still here: `graph` returns what they give, moved."""
    (output,) = graph.find_nodes(op="output")
    border: dict[fx.Node, None] = {}
    list(walk_back(output.all_input_nodes, lambda node: ops.op_name(node) not in MOVES, border=border))
    return [node for node in border if comms.is_wait(node) and DEPARTS in node.meta.get(CUSTOM, {})]


def _copies(node: fx.Node, reader: fx.Node) -> list[fx.Node]:
    """`node`, what it copies or views, and so on; nothing if anything else than `reader` reads one of these."""
    path: list[fx.Node] = []
    while list(node.users) == [reader]:
        path.append(node)
        if not _keeps_order(node):
            return path
        reader, node = node, _copied(node)
    return []


def _keeps_order(node: fx.Node) -> bool:
    """Whether it is what it is given, in the order of memory: collectives return what is contiguous."""
    if node.target is COPY:
        into, value = ops.tensor(node), ops.tensor(_copied(node))
        if into is None or value is None:
            return False
        return ops.same_shape(into, value) and into.dtype == value.dtype
    format = node.kwargs.get("memory_format")
    return ops.op_name(node) in KEEP_ORDER and format in (None, torch.contiguous_format, torch.preserve_format)


def _copied(node: fx.Node) -> fx.Node:
    """What a copy is of, or a view."""
    source = node.args[1 if node.target is COPY else 0]
    assert isinstance(source, fx.Node)
    return source


def _in_the_shape_of(returned: fx.Node, flying: fx.Node) -> fx.Node:
    """A view of what is in flight: it looks at no value."""
    value, memory = ops.tensor(returned), ops.tensor(flying)
    assert value is not None
    assert memory is not None
    sizes = [size if isinstance(size, int) else -1 for size in value.shape]
    with returned.graph.inserting_before(returned):
        view = returned.graph.call_function(torch.ops.aten.view.default, (flying, sizes))
    view.meta = {"val": memory.view(sizes)}
    return view


def departs(launch: fx.Node) -> bool:
    """Whether `leave_in_flight` has left the wait for `launch` to the next graph."""
    return launch.meta.get(CUSTOM, {}).get(DEPARTS) == "launched"


def arrivals(graph: fx.Graph) -> dict[fx.Node, tuple[str, str]]:
    """The waits of a forward graph for what came in flight, in graph order: operator and process group of each."""
    found = {}
    for wait in ops.calls(graph, comms.is_wait):
        if (flight := arrival(wait)) is not None:
            found[wait] = flight
    return found if not _is_backward(graph) else {}


def has_landed(wait: fx.Node) -> bool:
    """Whether a wait of `arrivals` takes no time, since another one was launched on its channel later."""
    return LANDED in wait.meta.get(CUSTOM, {})


def arrival(wait: fx.Node) -> tuple[str, str] | None:
    """What a wait of a forward graph is for, if that came in flight: operator and process group."""
    text = wait.meta.get(CUSTOM, {}).get(FLIGHT)
    if text is None or not wait.all_input_nodes or wait.all_input_nodes[0].op != "placeholder":
        return None
    operator, _, group = str(text).partition(" ")
    return operator, group


def _is_backward(graph: fx.Graph) -> bool:
    return any(node.name.startswith("tangents") for node in graph.find_nodes(op="placeholder"))


def land_if_recomputed() -> Any:
    """The operator `farskip::land_if_recomputed`."""
    return torch.ops.farskip.land_if_recomputed.default
