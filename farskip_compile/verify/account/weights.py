# SPDX-License-Identifier: Apache-2.0
"""Where weights of the model are applied, where activations begin, and which weights are given chosen rows.

Contract: pure questions about nodes; shares no code with detection.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import fx

from farskip_compile._compat import is_module_state
from farskip_compile.passes.graph import ops
from farskip_compile.passes.graph.declared import declared, outputs_of
from farskip_compile.passes.graph.walk import walk_back
from farskip_compile.verify.rows.rules import is_contraction, is_state, is_unknown
from farskip_compile.verify.rows.state import FREE, RowDependence, RowFacts

NETWORKS = frozenset(["dense", "routed"])
"""Declared kinds of what may have weights of its own."""


def routes(nodes: Iterable[fx.Node], rows: Mapping[fx.Node, RowFacts]) -> Iterator[fx.Node]:
    """Rows that were decided about, and that weights have made or are given."""
    weighted: set[fx.Node] = set()
    for node in nodes:
        if has_weights(node) or not weighted.isdisjoint(node.all_input_nodes):
            weighted.add(node)
            found = rows.get(node, FREE)
            if found.decided and RowDependence.ROWS <= found.state <= RowDependence.MOVED:
                yield node


def weighted_sources(node: fx.Node) -> Iterator[fx.Node]:
    """Find what weights are applied to on the way to `node`, and all that this is computed from."""
    products = [one for one in walk_back([node], inputs=_read) if has_weights(one)]
    return walk_back((arg for one in products for arg in one.all_input_nodes), inputs=_read)


def _read(node: fx.Node) -> list[fx.Node]:
    """The nodes whose data `node` reads: none whose shape alone counts."""
    if ops.op_name(node) in ops.LIKE:
        return []
    skipped = node.args[0] if ops.op_name(node) == "added_alone" else None
    return [arg for arg in node.all_input_nodes if arg is not skipped]


def has_weights(node: fx.Node) -> bool:
    """A product with weights of the model; or an operator that nothing is known about, and that is given some; or one
    that was declared to be a network, and is given none that show: it finds them by itself."""
    if not is_contraction(node):
        return False
    return any(map(_is_weight, node.all_input_nodes)) or _finds_weights(node)


def applies_weights(node: fx.Node) -> bool:
    """Return whether features meet in `node`; an operator that nothing is known about, and that is given no parameter,
    may just hand its input on."""
    return is_contraction(node) and (not is_unknown(node) or any(map(is_state, node.all_input_nodes)))


def _finds_weights(node: fx.Node) -> bool:
    kinds = (declared(node), *outputs_of(node))
    return not NETWORKS.isdisjoint(kinds) and not any(map(_is_held, node.all_input_nodes))


def _is_weight(node: fx.Node) -> bool:
    """A floating parameter or buffer of two dimensions or more, or something made of one alone."""
    value = ops.tensor(node)
    return value is not None and value.dim() >= 2 and _is_held(node)


def _is_held(node: fx.Node) -> bool:
    """A floating parameter or buffer, or something made of some alone."""
    if not ops.is_floating(node):
        return False
    return is_state(node) or all(map(is_state, (one for one in walk_back([node]) if not one.all_input_nodes)))


def begins_rows(node: fx.Node) -> bool:
    """Whether rows begin here: an activation that is an input of the call, or picked from a table by one."""
    is_input = node.op == "placeholder"
    if not (is_input or ops.op_name(node) in ops.INDEX_OPS):
        return False
    value = ops.tensor(node)
    if value is None or not value.is_floating_point() or value.dim() < 2:
        return False
    if is_input:
        return not is_module_state(node)
    tables = [arg for arg in node.all_input_nodes if _is_weight(arg)]
    return bool(tables) and len(node.all_input_nodes) > len(tables)
