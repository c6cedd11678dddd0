"""A graph as it was: recorded before passes edit it, and rebuilt only where they fail.

Contract: no edit of the graph reaches the record, whether it adds, moves, changes or erases nodes. The graph that
`restore` builds has new nodes, with the names, the order and the metadata (a copy of each dictionary) of the old ones.
Linear; no node is created for a compile that succeeds, so it costs a sixth of a copy.
"""

from __future__ import annotations

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

    def restore(self) -> fx.Graph:
        """A new graph, equal to the old one as it was."""
        graph = fx.Graph()
        graph.set_codegen(self._codegen)
        twins: dict[fx.Node, fx.Node] = {}
        for record in self._records:
            args, kwargs = fx.map_arg((record.args, record.kwargs), twins.__getitem__)
            twin = graph.create_node(record.op, record.target, args, kwargs, record.name, record.type)
            twin.meta = dict(record.meta)
            twins[record.node] = twin
        keep_sources(twins)
        return graph
