# SPDX-License-Identifier: Apache-2.0
"""A graph as it was: recorded before passes edit it, and rebuilt where they fail, or to compare with what they made.

Contract: no edit of the graph reaches the record, whether it adds, moves, changes or erases nodes. The graph that
`restore` builds has new nodes, with the names, the order and the metadata (a copy of each dictionary) of the old ones;
nodes that are known to be `unchanged` may be left out. Linear; a record alone creates no node, so it costs a sixth of a
copy.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from torch import fx

from farskip_compile._compat import codegen_of, keep_sources


class RecordedNode(NamedTuple):
    """A node as it was, or as it would be."""

    node: fx.Node
    op: str
    name: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    meta: dict[str, Any]
    type: Any = None


class GraphSnapshot:
    """A record of `graph` as it is now."""

    def __init__(self, graph: fx.Graph) -> None:
        # arguments of nodes are replaced, never written to
        self._records = [
            RecordedNode(node, node.op, node.name, node.target, node.args, node.kwargs, dict(node.meta), node.type)
            for node in graph.nodes
        ]
        self._codegen = codegen_of(graph)

    @property
    def records(self) -> Sequence[RecordedNode]:
        """The nodes as they were, in order."""
        return self._records

    def shows(self, graph: fx.Graph, besides: Callable[[fx.Node], bool]) -> bool:
        """Return whether `graph`, the one recorded, is as it was, but for metadata and new nodes `besides`."""
        nodes = [node for node in graph.nodes if not besides(node)]
        return len(nodes) == len(self._records) and all(
            record.node is node and _is_as_it_was(record) for node, record in zip(nodes, self._records, strict=True)
        )

    def restore(self, without: Collection[str] = ()) -> fx.Graph:
        """A new graph, equal to the old one as it was.

        Nodes named in `without` are left out; those of them that others take are placeholders.
        """
        taken: set[fx.Node] = set()
        for record in self._records if without else ():
            if record.name not in without:
                fx.map_arg((record.args, record.kwargs), taken.add)
        graph = fx.Graph()
        graph.set_codegen(self._codegen)
        twins: dict[fx.Node, fx.Node] = {}
        for record in self._records:
            if record.name in without:
                if record.node not in taken:
                    continue
                record = record._replace(op="placeholder", target=record.name, args=(), kwargs={})
            args, kwargs = fx.map_arg((record.args, record.kwargs), twins.__getitem__)
            twin = graph.create_node(record.op, record.target, args, kwargs, record.name, record.type)
            twin.meta = dict(record.meta)
            twins[record.node] = twin
        keep_sources(twins)
        return graph

    def unchanged(self, graph: fx.Graph) -> set[fx.Node]:
        """The nodes of `graph`, the one recorded, that are as they were, but for their places and their metadata.

        They take the same nodes as they did. If any node has another name, none is known to be as it was.
        """
        record_of = {record.node: record for record in self._records}
        left = [(node, record) for node in graph.nodes if (record := record_of.get(node)) is not None]
        if any(node.name != record.name for node, record in left):
            return set()
        return {node for node, record in left if _is_as_it_was(record)}


def _is_as_it_was(record: RecordedNode) -> bool:
    node = record.node
    same = node.args is record.args and node.kwargs is record.kwargs  # replaced by any edit
    return same and node.op == record.op and node.target is record.target
