# SPDX-License-Identifier: Apache-2.0
"""Erase what an edit has left without users.

In:    a graph, and the nodes that had users before the edit.
Out:   the same graph without those that have none now.
Never: erases what nothing used before, or what does more than compute a value.
"""

from __future__ import annotations

from collections.abc import Set

from torch import fx

from farskip_compile.passes.graph import comms, effects


def erase_dead(graph: fx.Graph, used_before: Set[fx.Node]) -> None:
    """Erase nodes that had users before the edit and have none now: also collectives, on every rank alike."""
    for node in reversed(list(graph.nodes)):
        if node.users or node not in used_before:
            continue
        if comms.is_collective(node) or comms.is_wait(node) or effects.is_pure(node):
            graph.erase_node(node)


def used_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Nodes with at least one user."""
    return {node for node in graph.nodes if node.users}
