# SPDX-License-Identifier: Apache-2.0
"""A graph without a residual stack: a part of a model with layers in it, or something that has none.

Contract: `check_fragment` is given a normalised graph of which no residual sum was read. It passes a loss, a sampler,
an embedding, a head, and anything without weights; it refuses what has weights and does what a layer does. It shares no
code with detection.

Algorithm (linear in the graph for each shape of an input): rows begin at the floating inputs of the call, and where an
input picks rows of a table. A layer shows where weights are given rows that were mixed by a product, or that were
decided about (`rows`); or as in the account of a stack (`account`).
"""

from __future__ import annotations

from torch import fx

from farskip_compile.errors import PartialModelError
from farskip_compile.passes.graph import ops, user_calls
from farskip_compile.verify.account.kinds import is_known_mixer
from farskip_compile.verify.account.layers import find_layer
from farskip_compile.verify.account.weights import begins_rows, has_weights, routes
from farskip_compile.verify.rows.read import begin, read_rows
from farskip_compile.verify.rows.rules import is_unknown
from farskip_compile.verify.rows.state import RowDependence


def check_fragment(graph: fx.Graph) -> None:
    """See the module's contract.

    Raises:
        PartialModelError: the graph holds layers, or parts of some.
    """
    if not any(map(has_weights, graph.nodes)):
        return
    sources = [node for node in graph.nodes if begins_rows(node)]
    rows = read_rows(graph.nodes, begin(sources))
    for node in routes(graph.nodes, rows):
        raise _error(node, "rows that weights have made are decided about, as experts are")
    for node in graph.nodes:
        at = rows[node].at
        if has_weights(node) and rows[node].state >= RowDependence.MIXED and at is not None and _may_attend(at):
            raise _error(
                at, f"weights are given rows that {user_calls.shown(at)!r} may have mixed, as an attention does"
            )
    found = another_form(graph)
    if found is not None:
        raise _error(*found)


def another_form(graph: fx.Graph) -> tuple[fx.Node, str] | None:
    """A layer in another form than a sum, if there is one: the node that combines, and what it does."""
    sources = [node for node in graph.nodes if begins_rows(node)]
    shapes = {tuple(map(str, value.shape)): value.shape for node in sources if (value := ops.tensor(node)) is not None}
    found = (find_layer(graph.nodes, sources, shape) for shape in shapes.values())
    return next((one for one in found if one is not None), None)


def _may_attend(node: fx.Node) -> bool:
    return ops.is_attention(node) or is_known_mixer(node) or is_unknown(node)


def _error(node: fx.Node, what: str) -> PartialModelError:
    return PartialModelError(
        f"a part of a model without its residual stack: {what}; layers, or parts of some, are compiled one by one",
        way_out='compile the whole model: torch.compile(model, backend="farskip", fullgraph=True); prepare layers that '
        "are compiled by themselves: farskip_compile.regional(model, compile=False); or use "
        'connectivity="none", which rewires nothing',
        where=user_calls.where(node),
    )
