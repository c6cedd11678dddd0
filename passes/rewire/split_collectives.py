"""Split a linear collective that hides a sum: C(r + s) becomes C(r) + C(s).

In:    a normalised graph as a `Reading`, and a `Request`.
Out:   the graph, in which every linear collective (all-reduce or reduce-scatter of a sum) holds either only terms
       that the request leaves out, or none of them; and the graph, read again.
Never: touches a collective that the request does not need split. Exact in real arithmetic, not in floating point.

Tensor-parallel models sum routed and shared experts before one all-reduce, or reduce-scatter with sequence parallelism.
Attention must read the shared part without waiting for the routed one, so both are reduced apart: two reductions, as in
the published engines of FarSkip.

Order. The order of launches in the graph is the order in which a process group runs them. What the next attention waits
for is launched first, and as soon as it is computed: in a model that computes its shared experts first, in front of the
routed ones. Waits and the addition of the two parts stay where the sum was.
"""

from __future__ import annotations

import operator

from torch import fx

from farskip_compile.passes.graph import ops
from farskip_compile.passes.residual import Reading, read_table
from farskip_compile.passes.residual.stream import Stream
from farskip_compile.passes.residual.termset import TermSet
from farskip_compile.passes.rewire.request import Request
from farskip_compile.passes.rewire.substitute import Substitution


def split_collectives(module: fx.GraphModule, reading: Reading, request: Request) -> tuple[Reading, int]:
    """Split what `request` needs split.

    Returns:
        The graph as it is then (the same reading if nothing was split), and how many were split.
    """
    stream = reading.stream
    dropped = TermSet.of(sorted({index for terms in request.left_out.values() for index in terms}))
    tops = [node for node in stream.tree if _hides_both(stream, node, dropped)]
    if not tops:
        return reading, 0
    substitution = Substitution(stream, module.graph)
    for top in tops:
        terms = stream.tree[top]
        kept = substitution.without(top, terms & dropped)
        left = substitution.without(top, terms - dropped, bare=True)
        assert kept is not None
        assert left is not None
        _launch_early(stream, kept)
        users = list(top.users)
        with module.graph.inserting_after(left):
            total = module.graph.call_function(operator.add, (left, kept))
        total.meta = {**kept.meta, "example_value": left.meta["example_value"]}
        for user in users:
            user.replace_input_with(top, total)
    split = read_table(module.graph)
    assert split is not None
    return split, len(tops)


def _launch_early(stream: Stream, kept: fx.Node) -> None:
    """Move the new nodes behind `kept`, up to the first launch, to right behind what they are computed from."""
    fresh: dict[fx.Node, None] = {}
    stack = [kept]
    while stack:
        node = stack.pop()
        if node not in stream.order and node not in fresh:
            fresh[node] = None
            stack.extend(node.all_input_nodes)
    place: dict[fx.Node, int] = {}
    last_behind: dict[int, fx.Node] = {}
    for node in reversed(fresh):
        if ops.is_wait(node):
            return
        behind = ((place[arg] if arg in place else stream.order[arg], arg) for arg in node.all_input_nodes)
        position, latest = max(behind, key=lambda pair: pair[0])
        place[node] = position
        last_behind.get(position, latest).append(node)
        last_behind[position] = node


def _hides_both(stream: Stream, node: fx.Node, dropped: TermSet) -> bool:
    """`node` is the last collective (or its wait) on the way from a sum of terms of both sorts to the next sum."""
    terms = stream.tree[node]
    if not _communicates(node) or 0 in terms or not terms & dropped or not terms - dropped:
        return False
    parent = stream.parents.get(node)
    while parent is not None and len(stream.below[parent]) == 1:
        if _communicates(parent):
            return False
        parent = stream.parents.get(parent)
    return True


def _communicates(node: fx.Node) -> bool:
    return ops.is_collective(node) or ops.is_wait(node)
