"""What a graph's kernels would hold in memory if nothing had been scheduled: the limit on memory is a part of that.

In:    a graph, before it is ordered; later the kernels that Inductor made of it, and their `Program`.
Out:   the peak, in bytes, of the kernels in the order that the graph had at first.
Never: moves anything; adds anything to a node but its place.

Inductor's own order of the kernels can't stand for that alone: it follows the scheduled graph, so that what overlapping
costs may be in it already. Where it holds less, since it is made to, the limit starts from there.

Algorithm: each node is told its place. A kernel's place is that of the last node in it; if it has none, that of the
last kernel that it needs. In that order the kernels run, each after those whose results it needs; what it needs for
order alone, such as our pins, was not there at first.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from farskip_compile._compat import inductor
from farskip_compile.passes.schedule.key_order import order_by_key
from farskip_compile.passes.schedule.program import Program, live_bytes

PLACE = "farskip_place"
"""Key of a node's `meta`."""


def remember_order(graph: fx.Graph) -> None:
    """Tell each node its place, unless an earlier call has."""
    for place, node in enumerate(graph.nodes):
        node.meta.setdefault(PLACE, place)


def unscheduled_peak(kernels: Sequence[inductor.Kernel], program: Program) -> int:
    """Peak bytes of `program`, read off `kernels`, in the order of the graph before it was scheduled."""
    maker = {name: i for i, kernel in enumerate(kernels) for name in inductor.kernel_makes(kernel)}
    needs: list[set[int]] = []
    places: list[int] = []
    for i, kernel in enumerate(kernels):
        needs.append({maker[name] for name in inductor.kernel_reads(kernel) if name in maker} - {i})
        nodes = (node for _, origins in inductor.kernel_parts(kernel) for node in origins)
        own = [node.meta[PLACE] for node in nodes if PLACE in node.meta]
        places.append(max(own or [places[need] for need in needs[i] if need < i], default=0))
    return max(live_bytes(program, order_by_key(places, needs)), default=0)
