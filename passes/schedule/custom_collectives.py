# SPDX-License-Identifier: Apache-2.0
"""Post-grad: collectives by operators of the user become launches and waits like PyTorch's own.

In:    an ATen graph before it is scheduled; the operators that were declared as collectives.
Out:   the same graph, in which launches, waits and what blocks are marked; a wait reads all that its launch has in
       flight, besides what it waits for (`farskip::wait_for`). How many waits there are.
Never: moves a node; takes part of an operator for a collective that nobody declared, and whose parameters name no
       process group: nothing shows that it communicates.

Inductor knows of PyTorch's own waits that their launches use memory until then. Of other operators it does not, and
would write the result of a later kernel over what a launch still reads.

Algorithm:
1. Mark the nodes by what was declared about their operators.
2. Each wait must be for one launch of this graph, alone and with its result; each launch must have one, and a group.
3. Replace the wait by the operator that calls it, with the inputs and the other results of the launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from farskip_compile._compat.distributed import is_group
from farskip_compile._compat.marks import EAGER_INPUTS
from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.passes.graph import comms, ops, user_calls
from farskip_compile.passes.graph.declared import Declared, note_declared, part_of_a_collective
from farskip_compile.passes.schedule.collectives import launch_of


def mark_custom_collectives(graph: fx.Graph, facts: Sequence[Declared]) -> int:
    """See the module's contract.

    Raises:
        UnsupportedPatternError: a wait takes anything but the result of its launch; a launch has no wait, or no group.
    """
    note_declared(graph, facts, comms.called_name)  # 1
    waits: dict[fx.Node, list[fx.Node]] = {node: [] for node in graph.nodes if part_of_a_collective(node) == "launch"}
    for node in [node for node in graph.nodes if part_of_a_collective(node) == "wait"]:
        launch = launch_of(node) if len(node.args) == 1 and not node.kwargs else None
        if launch not in waits:  # 2
            raise _error(node, "it waits for anything but one tensor that its launch in this graph has returned")
        waits[launch].append(node)
    for launch, found in waits.items():
        if not found:
            raise _error(launch, "nothing waits for it")
        if not is_group(comms.process_group(launch)):
            raise _error(launch, "none of its parameters is the name of a process group of torch.distributed")
        results = [user for user in launch.users if ops.op_name(user) == "getitem"]
        in_flight = [node for node in (*launch.all_input_nodes, launch, *results) if ops.tensor(node) is not None]
        for wait in found:
            _hold(wait, [node for node in in_flight if node is not wait.args[0]])  # 3
    return sum(map(len, waits.values()))


def blocking(graph: fx.Graph) -> tuple[str, ...]:
    """The operators of `graph` that communicate and can't be moved apart, with how often each is called."""
    counts: dict[str, int] = {}
    for node in filter(comms.is_blocking, graph.nodes):
        name = comms.called_name(node)
        counts[name] = counts.get(name, 0) + 1
    return tuple(f"{count} x {name}" for name, count in counts.items())


def _hold(wait: fx.Node, held: list[fx.Node]) -> None:
    """Replace the call, not the node: its name and its readers stay."""
    args: Any = (wait.args[0], [node for node in held if _comes_before(node, wait)], ops.op_name(wait))
    wait.target, wait.args = torch.ops.farskip.wait_for.default, args
    wait.meta.pop(EAGER_INPUTS, None)  # of another call


def _comes_before(node: fx.Node, other: fx.Node) -> bool:
    """A result that is only taken after the wait is alive by then anyway."""
    return node < other


def _error(node: fx.Node, reason: str) -> UnsupportedPatternError:
    return UnsupportedPatternError(
        f"{user_calls.shown(node)!r} can't be overlapped as it was declared: {reason}",
        way_out="a wait that takes one tensor of the launch and returns a new one; or declare_op without wait=: then "
        "it blocks, and stays where it is",
        where=user_calls.where(node),
    )
