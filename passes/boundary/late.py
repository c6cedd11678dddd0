"""Which nodes of a graph may run after its end: those behind the last waits of the terms that leave it apart.

Contract: pure questions about a stream that is read. What is late computes a value and does nothing else, needs no
weight that belongs to this graph's module (it may be gone, or sharded again, when the next graph runs), and is called by
names that any process knows. Where that does not hold of a term, its wait stays in this graph, and the reason is given.

Algorithm, for each such term:
1. Walk back from it to the first waits on each path. One that something else reads is waited for here anyway.
2. Late is what depends on one of the waits that are left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field

import torch
from torch import fx

from farskip_compile._compat import is_module_state
from farskip_compile.passes.graph import effects, ops
from farskip_compile.passes.graph.walk import spread, walk_back
from farskip_compile.passes.normalize.accumulations import added_alone
from farskip_compile.passes.residual.stream import Stream


@dataclass
class Late:
    """What runs after the end of the graph."""

    nodes: set[fx.Node] = field(default_factory=set)
    waits: set[fx.Node] = field(default_factory=set)
    """Waits that are made there."""
    stays: dict[int, str] = field(default_factory=dict)
    """Why a term, by its index, has landed when the graph ends."""


def find_late(stream: Stream, apart: Iterable[int]) -> Late:
    """What is late of the terms `apart` of `stream`; the sums that hold them are late in any case."""
    found = Late()
    indices = set(apart)
    found.nodes = {
        node for node, terms in stream.tree.items() if stream.below[node] and not indices.isdisjoint(terms)
    } - {stream.leaves[index] for index in indices}
    switched = set(_inside_switches(stream.flow.nodes))
    for index in sorted(indices):
        late, waits, reason = _late_of(stream, stream.leaves[index], found.nodes, switched)
        if reason:
            found.stays[index] = reason
        else:
            found.nodes |= late
            found.waits |= waits
    return found


def _late_of(
    stream: Stream, leaf: fx.Node, sums: Set[fx.Node], switched: Set[fx.Node]
) -> tuple[set[fx.Node], set[fx.Node], str]:
    border: dict[fx.Node, None] = {}
    stops = lambda node: ops.is_wait(node) or stream.is_residual(node)  # noqa: E731
    behind = list(walk_back([leaf], stops, stream.inputs, border))  # 1
    waits = {node for node in border if ops.is_wait(node)}
    order = sorted(behind, key=stream.order.__getitem__)
    late = spread(order, lambda node: not waits.isdisjoint(stream.inputs(node)), stream.inputs)  # 2
    flying = {wait for wait in waits if all(_is_late(user, late, sums) for user in wait.users)}
    if not flying:
        return set(), set(), "nothing is in flight" if not waits else "its result is read in the same graph"
    late = spread(order, lambda node: not flying.isdisjoint(stream.inputs(node)), stream.inputs)
    for node in late:
        if reason := _why_here(node, late | flying, switched):
            return set(), set(), f"{ops.op_name(node)!r} comes after its wait, and {reason}"
    return late, flying, ""


def _is_late(user: fx.Node, late: Set[fx.Node], sums: Set[fx.Node]) -> bool:
    """Whether it runs after the end; a mark stands for a part of one of the `sums`."""
    return user in late or user in sums or user.target is added_alone


def _why_here(node: fx.Node, late: Set[fx.Node], switched: Set[fx.Node]) -> str:
    """Why a node can't run later; empty if it can."""
    if node.target is not added_alone and not effects.is_pure(node):
        return "does more than compute a value"
    if node in switched:
        return "runs under an autocast of its own"
    for arg in node.all_input_nodes:
        if arg in late:
            continue
        value = ops.fake(arg)
        if isinstance(value, torch.Tensor):
            if value.dim() > 1 and (arg.op == "get_attr" or is_module_state(arg)):
                return "needs a weight"
        elif not isinstance(value, int | float | torch.SymInt):
            return "needs something that is no tensor"
    return ""


def _inside_switches(nodes: Iterable[fx.Node]) -> Iterator[fx.Node]:
    """Nodes between a switch of PyTorch's, such as the beginning of autocast, and its end."""
    depth = 0
    for node in nodes:
        name = ops.op_name(node)
        if name in ("_enter_autocast", "_exit_autocast"):
            depth += 1 if "enter" in name else -1
        elif depth:
            yield node
