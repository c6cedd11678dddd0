# SPDX-License-Identifier: Apache-2.0
"""Post-grad: order an ATen graph for overlap, and pin the waits where the order puts them.

In:    an ATen graph, forward or backward, with collectives as launches and waits; costs; limits on memory.
Out:   the same nodes in another order (`schedule_graph`); each wait behind a control dependence on the matrix products
       and attentions that hide its collective (`pin_waits`, under Inductor).
Never: adds, removes or changes a computation; wraps compute; changes the order of the launches of a process group.

Why pins: Inductor reorders its kernels after fusion, and may fuse an early kernel with one that reads a wait's result,
which would pull the wait before everything that should hide it. The pin makes that fusion a cycle, so it does not
happen; every other fusion still does.

Algorithm:
1. Read the program.
2. Schedule it, beginning with AMD's placement: the result is at least as good.
3. Move the nodes; what takes one of several results comes right after what makes them.
4. The products between a launch and its wait in the new order are the wait's pins: a pin is a tensor, so that one with
   several results (a fused attention) is represented by the first that is taken.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable

import torch
from torch import fx

from farskip_compile._compat import inductor
from farskip_compile.passes.graph import ops
from farskip_compile.passes.schedule.collectives import launches_with_waits
from farskip_compile.passes.schedule.from_graph import GraphEstimate, read_program, remember_order
from farskip_compile.passes.schedule.in_flight import arrivals
from farskip_compile.passes.schedule.published import published_order
from farskip_compile.passes.schedule.search import MemoryLimits, Schedule, list_schedule


def schedule_graph(
    graph: fx.Graph,
    estimate: GraphEstimate,
    limits: MemoryLimits,
    in_place: Callable[[fx.Node], tuple[fx.Node, ...]] = lambda node: (),
    backward: bool = False,
) -> Schedule:
    """Order `graph` in place; `in_place`: the tensors that a later pass may let a node write to."""
    remember_order(graph)
    found = read_program(graph, estimate, in_place)  # 1.
    known = published_order(found.program, found.nodes, backward=backward)
    schedule = list_schedule(found.program, limits, begin_with=[known])  # 2.
    if schedule.changed:  # 3.
        output = next(iter(reversed(graph.nodes)))
        for index in schedule.order:
            if found.nodes[index].op != "placeholder":
                output.prepend(found.nodes[index])
        for index in schedule.order:
            for taken in reversed(_taken(found.nodes[index])):
                found.nodes[index].append(taken)
    return schedule


def pin_waits(graph: fx.Graph) -> int:
    """Pin the waits of `graph`, in place; returns how many."""
    found = pins(graph)
    inductor.pin(graph, found)
    return len(found)


def pins(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """For each wait of `graph`, the products that hide its collective, in graph order: they must run before it (4.)."""
    position = {node: place for place, node in enumerate(graph.nodes)}
    # matrix products and attentions: heavy, and never fused away
    heavy = [node for node in graph.nodes if ops.is_matmul(node) or ops.is_attention(node)]
    results = [node if ops.tensor(node) is not None else next(iter(_taken(node)), None) for node in heavy]
    products = sorted((node for node in results if node is not None), key=position.__getitem__)
    places = [position[node] for node in products]
    waiting: dict[fx.Node, list[fx.Node]] = {}
    flights = [(launch, wait) for launch, waits in launches_with_waits(graph).items() for wait in waits]
    flights += [(wait.all_input_nodes[0], wait) for wait in arrivals(graph)]
    for launch, wait in flights:
        first, last = (bisect(places, position[node]) for node in (launch, wait))
        if first < last:
            waiting[wait] = products[first:last]
    return waiting


def _taken(node: fx.Node) -> list[fx.Node]:
    """What takes tensors out of the several results of `node`, in the order of these."""
    if node.op != "call_function" or isinstance(ops.fake(node), torch.Tensor):
        return []
    taken = [user for user in node.users if ops.op_name(user) == "getitem" and ops.tensor(user) is not None]
    return sorted(taken, key=lambda user: str(user.args[1]))
