# SPDX-License-Identifier: Apache-2.0
"""Everything that a reading must pass before anything is rewired: it is whole, and accounts for the rest of the graph.

Contract: `account_for` puts the claims of a reading before the checks that share no code with it, in the order in
which their errors are most telling. It changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx

from farskip_compile.errors import PartialModelError
from farskip_compile.passes.graph import ops
from farskip_compile.passes.graph.walk import walk_back
from farskip_compile.passes.residual import Reading
from farskip_compile.verify.account.begins import rows_begin
from farskip_compile.verify.account.declared import check_declared
from farskip_compile.verify.account.fragment import check_fragment
from farskip_compile.verify.account.kinds import Claim, check_kinds
from farskip_compile.verify.account.outside import Beside, Claims, check_account
from farskip_compile.verify.completeness import check_complete, check_part, known_cut
from farskip_compile.verify.rows.read import read_rows
from farskip_compile.verify.rows.state import RowDependence, RowFacts


def account_for(module: fx.GraphModule, reading: Reading | None, part: bool) -> tuple[Beside, ...]:
    """Check `reading` against the graph of `module`, or of a part of a model; returns what stands beside the stack.

    Raises:
        PartialModelError: the graph holds a part of a model.
        NotASumError: there are layers, but what they add up to is not a sum.
        UnsupportedPatternError: a sub-block is not what it was taken for, or something with weights is in none.
    """
    if part:
        check_part(module, reading)
    else:
        check_complete(module, reading)
    graph = module.graph
    if reading is None:
        try:
            check_fragment(graph)
        except PartialModelError as error:
            raise known_cut(module, error.where) or error from None
        return ()
    stream = reading.stream
    rows = read_rows(graph.nodes, rows_begin(graph, stream.base, stream.values))
    claims = [
        Claim(term, region.leaf, region.owned)
        for term, region in zip(reading.table.terms, reading.regions, strict=True)
        if not term.carried  # what came in was looked at in the graph that it comes from
    ]
    check_declared(claims, stream.base, {stream.base, *stream.values}, rows)
    check_kinds(claims, stream.base, rows)
    owned = {node for region in reading.regions for node in region.owned} | set(stream.tree) | set(stream.values)
    if part:
        came_in = [leaf for leaf, region in zip(stream.leaves, reading.regions, strict=True) if not region.owned]
        owned.update(walk_back(came_in))
    given = [
        region.leaf
        for term, region in zip(reading.table.terms[1:], reading.regions[1:], strict=True)
        if not region.owned and not term.carried
    ]
    unfinished = _ends_in_a_mixer(claims, graph, rows)
    return check_account(graph, Claims(stream.base, stream.root, stream.values, owned, given, unfinished), rows)


def _ends_in_a_mixer(claims: Sequence[Claim], graph: fx.Graph, rows: Mapping[fx.Node, RowFacts]) -> bool:
    """Return whether tokens are mixed in the term that is computed last."""
    by_leaf = {claim.leaf: claim for claim in claims}
    last = next((by_leaf[node] for node in reversed(graph.nodes) if node in by_leaf), None)
    if last is None:
        return False
    return rows[last.leaf].state is RowDependence.MIXED or any(
        ops.is_attention(one) or ops.is_scan(one) for one in last.owned
    )
