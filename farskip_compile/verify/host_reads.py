# SPDX-License-Identifier: Apache-2.0
"""Proof that the host reads the numbers that it read before.

Contract: looks at the graph before and after, never at how it was changed, and changes nothing. Offsets are not looked
at: the views that a read went through are run on numbers that say where they stand.

What must hold:
1. All nodes are there, in the same order, with the same operators and arguments, but for what reads read. What was
   added are copies to the host, waits for them, and picks of one number.
2. A read takes the number that it took before: of the same tensor, by way of one copy and the wait for it, which holds
   the tensor; or, unchanged, as before.
3. Nothing writes to the memory of a tensor that is copied: the copy would be of another time than the read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from farskip_compile.errors import VerificationError
from farskip_compile.passes.graph import effects, ops, user_calls

READ = torch.ops.aten._local_scalar_dense.default
ADDED = frozenset(["farskip::to_host", "farskip::on_host", "select"])
CallsByName = dict[str, tuple[Any, Any, Any]]
"""Name of a node -> what it calls, and its arguments."""


def reads_before(graph: fx.Graph) -> CallsByName:
    """Record the nodes of `graph`."""
    return {node.name: (node.target, node.args, node.kwargs) for node in graph.nodes}


def verify_host_reads(graph: fx.Graph, before: CallsByName) -> None:
    """Check `graph` against what `reads_before` recorded.

    Raises:
        VerificationError: naming the first node that is not as it must be, and why.
    """
    kept = [node for node in graph.nodes if node.name in before]
    if [node.name for node in kept] != list(before):
        raise _error(kept[-1], "nodes were removed, or are in another order")
    places: dict[fx.Node, torch.Tensor] = {}
    for node in graph.nodes:
        if node.name not in before:
            if ops.op_name(node) not in ADDED:
                raise _error(node, "it was added, and copies nothing to the host")
        elif (node.target, node.args, node.kwargs) != before[node.name]:
            if node.target is not READ or before[node.name][0] is not READ:  # 1
                raise _error(node, "it was changed, and is not a read")
            _same_number(node, before[node.name][1][0], before, places)  # 2
    copied = {effects.storage(node) for node in places}
    for node in graph.nodes:
        if any(effects.storage(arg) in copied for arg in effects.mutated_args(node)):  # 3
            raise _error(node, "it writes to what the host reads by a copy")


def _same_number(read: fx.Node, was: fx.Node, before: CallsByName, places: dict[fx.Node, torch.Tensor]) -> None:
    """`places`: of a tensor that is copied, or a view of one, where each of its numbers stands in the copy."""
    place = read.args[0]
    assert isinstance(place, fx.Node)
    came = place.args[0]
    sent = came.args[0] if isinstance(came, fx.Node) and ops.op_name(came) == "farskip::on_host" else None
    if not isinstance(sent, fx.Node) or ops.op_name(sent) != "farskip::to_host" or ops.op_name(place) != "select":
        raise _error(read, "it reads what is not a number of a copy that was waited for")
    base = sent.args[0]
    if list(came.args[1]) != [base]:  # type: ignore[union-attr, arg-type]
        raise _error(came, "it does not hold what is being copied")  # type: ignore[arg-type]
    views: list[fx.Node] = []
    while was is not base:
        if not getattr(was.target, "is_view", False) or not isinstance(was.args[0], fx.Node):
            raise _error(read, f"it read no part of {base}, which is copied")
        views.append(was)
        was = was.args[0]
    value = ops.tensor(was)
    assert value is not None
    if was not in places:
        places[was] = torch.arange(value.numel()).view(tuple(value.shape))
    numbers = places[was]
    for view in reversed(views):
        if view not in places:
            _, args, kwargs = before[view.name]
            places[view] = view.target(numbers, *args[1:], **kwargs)  # type: ignore[operator]
        numbers = places[view]
    if numbers.numel() != 1 or int(numbers) != place.args[2]:
        raise _error(read, f"it reads number {place.args[2]} of {base}, and read {numbers.tolist()}")


def _error(node: fx.Node, reason: str) -> VerificationError:
    return VerificationError(
        f"reading on the host has broken the graph at {node.name!r}: {reason}",
        way_out='please report this: it is a defect of farskip-compile. disable_passes=["host_reads"] avoids it',
        where=user_calls.where(node),
    )
