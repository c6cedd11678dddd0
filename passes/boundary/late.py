# SPDX-License-Identifier: Apache-2.0
"""Which nodes of a graph may run in the next one: those after the last waits of the terms that leave it apart.

Contract: pure questions about a stream that is read. What is late computes a value and does nothing else, and needs no
weight that belongs to this graph's module: it may be gone, or sharded again, when the next graph runs. Where that does
not hold of a term, its wait stays in this graph, and the reason is given.

Algorithm, for each such term:
1. It enters the stream where the last wait on its way to the root is, such as that of a reduction; else where it is
   computed. Sums above that are late. What a redistribution of a DTensor, or an `autograd.Function`,
   sends is waited for only after differentiation; its result counts as such a wait.
2. In the latter case, walk back from it to the first waits on each path. One that something else reads, or reads what
   comes of it, such as a size that data decides, is waited for here anyway. Late is what depends on one of the waits
   that are left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field

import torch
from torch import fx

from farskip_compile._compat import is_module_state
from farskip_compile.passes.graph import comms, effects, ops
from farskip_compile.passes.graph.hidden_collectives import hidden_launch
from farskip_compile.passes.graph.walk import spread, walk_back
from farskip_compile.passes.normalize.accumulations import added_alone
from farskip_compile.passes.residual.stream import Stream

SHAPED = frozenset({"zeros_like", "expand"} | ops.VIEWS)


@dataclass
class Late:
    """What runs after the end of the graph."""

    nodes: set[fx.Node] = field(default_factory=set)
    waits: set[fx.Node] = field(default_factory=set)
    """Waits that are made there."""
    stays: dict[int, str] = field(default_factory=dict)
    """Why a term, by its index, has landed when the graph ends."""
    entries: dict[fx.Node, list[int]] = field(default_factory=dict)
    """Where terms enter the stream, and which."""


def find_late(stream: Stream, apart: Iterable[int]) -> Late:
    """What is late of the terms `apart` of `stream`; the sums that hold them are late in any case."""
    found = Late()
    indices = sorted(set(apart))
    for index in indices:  # 1
        path = [stream.leaves[index]]
        while path[-1] in stream.parents:
            path.append(stream.parents[path[-1]])
        at = max((place for place, node in enumerate(path) if lands(node)), default=0)
        found.entries.setdefault(path[at], []).append(index)
        found.nodes.update(path[at + 1 :])
    found.nodes -= {node for entry in found.entries for node in _below(stream, entry)}
    sums, switched = frozenset(found.nodes), set(_inside_switches(stream.flow.nodes))
    for entry, held in found.entries.items():  # 2
        late, waits, reason = _late_of(stream, entry, sums, switched)
        if reason:
            found.stays.update(dict.fromkeys(held, reason))
        else:
            found.nodes |= late | set(_made_again(late))
            found.waits |= waits
    return found


def _below(stream: Stream, node: fx.Node) -> Iterator[fx.Node]:
    """`node`, and the sums and linear images that it is made of."""
    return walk_back([node], inputs=stream.below.__getitem__)


def _late_of(
    stream: Stream, entry: fx.Node, sums: Set[fx.Node], switched: Set[fx.Node]
) -> tuple[set[fx.Node], set[fx.Node], str]:
    border: dict[fx.Node, None] = {}

    def stops(node: fx.Node) -> bool:
        return lands(node) or stream.is_residual(node)

    behind = sorted(walk_back([entry], stops, stream.inputs, border), key=stream.order.__getitem__)
    waits = {node for node in border if lands(node)}
    late = spread(behind, lambda node: not waits.isdisjoint(node.all_input_nodes))
    readers: dict[fx.Node, fx.Node] = {}  # by what is read here, at once or by way of something else
    for node in reversed([*sorted(waits, key=stream.order.__getitem__), *behind]):
        for user in node.users:
            if not _is_late(user, late, sums):
                readers[node] = user
            elif user in readers:
                readers[node] = readers[user]
    flying = waits - readers.keys()
    if not flying:
        names = [readers[wait].name for wait in waits]
        return set(), set(), f"{min(names)!r} reads its result" if names else "nothing is in flight"
    late = spread(behind, lambda node: not flying.isdisjoint(node.all_input_nodes))
    for node in late:
        if reason := _why_here(node, late | flying, switched):
            return set(), set(), f"{ops.op_name(node)!r} comes after its wait, and {reason}"
    return late, flying, ""


def lands(node: fx.Node) -> bool:
    """Whether what is sent has arrived from here on."""
    return comms.is_wait(node) or hidden_launch(node) is not None


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
            return "needs a value that is neither a tensor nor a number"
    return ""


def _made_again(late: Iterable[fx.Node]) -> Iterator[fx.Node]:
    """The zeros that late nodes read, if their size is that of another tensor: rather made there than returned."""
    for node in late:
        for zeros in node.all_input_nodes:
            path = [zeros] if ops.is_zeros(zeros) else []
            while path and ops.op_name(path[-1]) in SHAPED and len(path[-1].all_input_nodes) == 1:
                path.append(path[-1].all_input_nodes[0])
            if len(path) > 1 and ops.tensor(path[-1]) is not None:
                yield from path[:-1]


def _inside_switches(nodes: Iterable[fx.Node]) -> Iterator[fx.Node]:
    """Nodes between a switch of PyTorch's, such as the beginning of autocast, and its end."""
    depth = 0
    for node in nodes:
        name = ops.op_name(node)
        if name in ("_enter_autocast", "_exit_autocast"):
            depth += 1 if "enter" in name else -1
        elif depth:
            yield node
