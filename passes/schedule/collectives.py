# SPDX-License-Identifier: Apache-2.0
"""Post-grad: every collective is one launch with its waits, which can be moved apart.

In:    an ATen graph after differentiation, forward or backward, from whatever the user called: synchronous
       `torch.distributed` functions, functional ones, autograd functions around them, DTensor redistributions.
Out:   the same graph with one wait per result: a wait of a wait and a second wait of one result are the first wait.
       On request, all-to-alls are moved to another process group with the same ranks, so that they do not queue up
       after other collectives.
Never: changes a value; moves a node; removes a launch.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from farskip_compile.passes.graph import comms, ops


@dataclass(frozen=True)
class Collapsed:
    """What was changed."""

    waits: int
    """Superfluous waits removed."""
    moved: int
    """All-to-alls moved to another process group."""


def normalize_collectives(graph: fx.Graph, regroup: dict[str, str] | None = None) -> Collapsed:
    """Collapse superfluous waits of `graph`, in place; `regroup`: process group -> the one that its all-to-alls are
    moved to, by name."""
    first: dict[fx.Node, fx.Node] = {}
    waits = moved = 0
    for node in ops.calls(
        graph, lambda node: comms.is_wait(node) or (comms.is_all_to_all(node) and comms.is_functional(node))
    ):
        if comms.is_wait(node):
            result = node.all_input_nodes[0]
            known = result if comms.is_wait(result) else first.setdefault(result, node)
            if known is not node:
                node.replace_all_uses_with(known)
                graph.erase_node(node)
                waits += 1
        elif target := (regroup or {}).get(comms.process_group(node)):
            comms.set_process_group(node, target)
            moved += 1
    return Collapsed(waits, moved)


def launches_with_waits(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """Each launch of `graph` with the waits of its results, in graph order."""
    pairs: dict[fx.Node, list[fx.Node]] = {}
    for node in ops.calls(graph, lambda node: comms.is_wait(node) or comms.is_collective(node)):
        if comms.is_collective(node):
            pairs[node] = []
        elif (launch := launch_of(node)) is not None:
            pairs[launch].append(node)
    return pairs


def launch_of(wait: fx.Node) -> fx.Node | None:
    """The launch whose result `wait` waits for; None for a tensor from outside the graph."""
    node = wait.args[0]
    if isinstance(node, fx.Node) and ops.op_name(node) == "getitem":
        node = node.args[0]
    return node if isinstance(node, fx.Node) and comms.is_collective(node) else None
