"""A graph as it was: recorded before passes edit it, and rebuilt only where they fail.

Contract: no edit of the graph reaches the record, whether it adds, moves, changes or erases nodes. The graph that
`restore` builds has new nodes, with the names, the order and the metadata (a copy of each dictionary) of the old ones;
that of `restore_only` has some of them, for who knows that the others are `unchanged`. Linear; no node is created for a
compile that succeeds, so it costs a sixth of a copy.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from torch import fx

from farskip_compile._compat import codegen_of, keep_sources


class _Record(NamedTuple):
    node: fx.Node
    op: str
    name: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    type: Any
    meta: dict[str, Any]


class GraphSnapshot:
    """A record of `graph` as it is now."""

    def __init__(self, graph: fx.Graph) -> None:
        # arguments of nodes are replaced, never written to
        self._records = [
            _Record(node, node.op, node.name, node.target, node.args, node.kwargs, node.type, dict(node.meta))
            for node in graph.nodes
        ]
        self._codegen = codegen_of(graph)

    @property
    def names(self) -> set[str]:
        """The names of all nodes."""
        return {record.name for record in self._records}

    def restore(self) -> fx.Graph:
        """A new graph, equal to the old one as it was."""
        return self._built(self._records)

    def restore_only(self, names: Collection[str]) -> fx.Graph:
        """The same of the nodes with these names alone. Others that they take are placeholders there."""
        wanted = [record for record in self._records if record.name in names]
        taken: set[fx.Node] = set()
        for record in wanted:
            fx.map_arg((record.args, record.kwargs), taken.add)
        kept = []
        for record in self._records:
            if record.name in names:
                kept.append(record)
            elif record.node in taken:
                kept.append(record._replace(op="placeholder", target=record.name, args=(), kwargs={}))
        return self._built(kept)

    def unchanged(self, graph: fx.Graph) -> set[fx.Node]:
        """The nodes of `graph`, the one recorded, that are as they were, but for their places and their metadata.

        They take the same nodes as they did. If any node has another name, none is known to be as it was.
        """
        record_of = {record.node: record for record in self._records}
        left = [(node, record) for node in graph.nodes if (record := record_of.get(node)) is not None]
        if any(node.name != record.name for node, record in left):
            return set()
        return {node for node, record in left if _is_as_it_was(record)}

    def _built(self, records: Collection[_Record]) -> fx.Graph:
        graph = fx.Graph()
        graph.set_codegen(self._codegen)
        twins: dict[fx.Node, fx.Node] = {}
        for record in records:
            args, kwargs = fx.map_arg((record.args, record.kwargs), twins.__getitem__)
            twin = graph.create_node(record.op, record.target, args, kwargs, record.name, record.type)
            twin.meta = dict(record.meta)
            twins[record.node] = twin
        keep_sources(twins)
        return graph


def _is_as_it_was(record: _Record) -> bool:
    node = record.node
    same = node.args is record.args and node.kwargs is record.kwargs  # replaced by any edit
    return same and node.op == record.op and node.target is record.target
