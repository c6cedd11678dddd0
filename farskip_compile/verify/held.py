# SPDX-License-Identifier: Apache-2.0
"""Proof that the waits of declared collectives are the user's own, and hold what their launches have in flight.

Contract: looks at the graph before and after, never at how it was changed, and changes nothing.

What must hold:
1. The nodes are the same, in the same order, with the same operators and arguments, but for such waits.
2. Such a wait calls the operator that it called, for what it was for.
3. It reads each tensor that its launch reads, and each that the launch has returned and that was taken before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import torch
from torch import fx

from farskip_compile.errors import VerificationError
from farskip_compile.passes.graph import ops, user_calls
from farskip_compile.passes.graph.declared import Declared

HeldCall = tuple[str, object, tuple[object, ...], dict[str, object]]
"""Name of a node, what it calls, and its arguments."""


def own_waits(graph: fx.Graph, facts: Sequence[Declared]) -> tuple[list[HeldCall], frozenset[str]]:
    """Record the nodes of `graph`; and the names of the operators that are declared as waits."""
    calls = [(node.name, node.target, node.args, node.kwargs) for node in graph.nodes]
    return calls, frozenset(fact.wait for fact in facts if fact.wait)


def verify_held(graph: fx.Graph, before: tuple[list[HeldCall], frozenset[str]]) -> None:
    """Check `graph` against what `own_waits` recorded.

    Raises:
        VerificationError: naming the first node that is not as it must be, and why.
    """
    calls, waits = before
    seen: set[fx.Node] = set()
    for node, was in zip_longest(graph.nodes, calls):
        if node is None or was is None:
            raise VerificationError("marking collectives has added or removed a node", way_out=WAY_OUT)
        name, target, args, kwargs = was
        if ops.function_name(target) not in waits or node.op != "call_function":
            if (node.name, node.target, node.args, node.kwargs) != (name, target, args, kwargs):  # 1
                raise _error(node, "it was changed, and is not a wait")
        elif node.target is not torch.ops.farskip.wait_for.default or node.args[0] is not args[0]:  # 2
            raise _error(node, f"it does not wait for what {ops.function_name(target)} was called with")
        elif node.args[2] != ops.function_name(target):
            raise _error(node, f"it calls {node.args[2]}, and was a call of {ops.function_name(target)}")
        elif missing := _in_flight(args[0], seen) - {args[0], *node.args[1]}:  # 3
            raise _error(node, f"it does not hold {sorted(map(str, missing))}, which its launch has in flight")
        seen.add(node)


def _in_flight(result: object, seen: set[fx.Node]) -> set[object]:
    """What the launch of `result` reads, and what was taken of what it has returned."""
    assert isinstance(result, fx.Node)
    launch = result.args[0] if ops.op_name(result) == "getitem" else result
    assert isinstance(launch, fx.Node)
    taken = {user for user in launch.users if ops.op_name(user) == "getitem" and user in seen}
    return {node for node in (launch, *launch.all_input_nodes, *taken) if ops.tensor(node) is not None}


WAY_OUT = "please report this: it is a defect of farskip-compile. `schedule=False` avoids it"


def _error(node: fx.Node, reason: str) -> VerificationError:
    return VerificationError(
        f"marking collectives has broken the graph at {node.name!r}: {reason}",
        way_out=WAY_OUT,
        where=user_calls.where(node),
    )
