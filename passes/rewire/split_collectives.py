# SPDX-License-Identifier: Apache-2.0
"""Split a linear collective that hides a sum: C(r + s) becomes C(r) + C(s).

In:    a normalised graph as a `Reading`, and a `RewireRequest`.
Out:   the graph, in which every linear collective (all-reduce or reduce-scatter of a sum) holds either only terms
       that the request leaves out, or none of them; and the graph, read again.
Never: touches a collective that the request does not need split. Exact in real arithmetic, not in floating point.

Tensor-parallel models sum routed and shared experts before one all-reduce, or reduce-scatter with sequence parallelism.
Attention must read the shared part without waiting for the routed one, so each is reduced on its own: two reductions,
as in the published engines of FarSkip.

Algorithm:
1. Find the collectives that hide both sorts of terms.
2. Build each without either sort (`substitute`), and add the two where the sum was, after both waits.
3. The order of launches in the graph is the order in which a process group runs them. What the next attention waits for
   is launched first, and as soon as it is computed: in a model that computes its shared experts first, before the
   routed ones.
"""

from __future__ import annotations

import operator

from torch import fx

from farskip_compile.passes.graph import comms
from farskip_compile.passes.graph.declared import declared
from farskip_compile.passes.graph.walk import walk_back
from farskip_compile.passes.residual import Reading, read_table
from farskip_compile.passes.residual.stream import Stream
from farskip_compile.passes.residual.termset import TermSet
from farskip_compile.passes.rewire.request import RewireRequest
from farskip_compile.passes.rewire.substitute import Substitution


def split_sums(module: fx.GraphModule, reading: Reading, request: RewireRequest) -> tuple[Reading, int]:
    """Split what `request` needs split.

    Returns:
        The graph as it is then (the same reading if nothing was split), and how many were split.
    """
    stream = reading.stream
    leaving = (*request.left_out.values(), request.leaving)
    dropped = TermSet.of(sorted({index for terms in leaving for index in terms}))
    tops = [node for node in stream.tree if _hides_both(stream, node, dropped)]  # 1
    if not tops:
        return reading, 0
    substitution = Substitution(stream, module.graph)
    for top in tops:
        # 2
        terms = stream.terms_of(top)
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
    """Step 3: move the new nodes that `kept` depends on, up to the first wait, right after what they depend on."""
    new = list(walk_back([kept], lambda node: node in stream.order))
    place: dict[fx.Node, int] = {}
    last_after: dict[int, fx.Node] = {}
    for node in reversed(new):
        if comms.is_wait(node):
            return
        inputs = ((place[arg] if arg in place else stream.order[arg], arg) for arg in node.all_input_nodes)
        position, latest = max(inputs, key=lambda pair: pair[0])
        place[node] = position
        last_after.get(position, latest).append(node)
        last_after[position] = node


def _hides_both(stream: Stream, node: fx.Node, dropped: TermSet) -> bool:
    """`node` is the last collective (or its wait) on the way from a sum of terms of both sorts to the next sum."""
    terms = stream.terms_of(node)
    if not _communicates(node) or 0 in terms or not terms & dropped or not terms - dropped:
        return False
    parent = stream.parents.get(node)
    while parent is not None and len(stream.below[parent]) == 1:
        if _communicates(parent):
            return False
        parent = stream.parents.get(parent)
    return True


def _communicates(node: fx.Node) -> bool:
    return comms.is_collective(node) or comms.is_wait(node) or declared(node) == "reduction"
