# SPDX-License-Identifier: Apache-2.0
"""Declarations of the user, held against rows: one that rows refute would rewire another model.

Contract: `check_declared` is given the terms, what computes each, and the `RowFacts` of all nodes, in which
declarations only fill in what no rule knows (`rows.rules`). It raises, or says nothing; what the rows can't see is
believed, such as the inside of a custom operator.

    attention, mixer    refuted where each row of what was declared stands alone, but for a step that decodes one token
    dense               refuted where an operator in it mixes or moves rows of a term, or a decision is made about them
    routed              refuted where an attention or a scan in it mixes rows of a term, or no decision is made in it
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

from torch import fx

from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.passes.graph import ops, user_calls
from farskip_compile.passes.graph.declared import DeclaredKind, declared, declared_name
from farskip_compile.passes.residual.table import TermKind
from farskip_compile.verify.account.kinds import Claim, has_rows_of_one
from farskip_compile.verify.rows.state import RowDependence, RowFacts

MIXERS = ("attention", "mixer")
REFUTED_BY = {"mixes": ("dense", "routed"), "moves": ("dense",)}
"""Map each effect of an operator on rows to the kinds that it refutes."""


def check_declared(
    claims: Sequence[Claim], base: fx.Node, values: Collection[fx.Node], rows: Mapping[fx.Node, RowFacts]
) -> None:
    """See the module's contract; at `values`, the residual ones, rows begin anew, whatever computes them.

    Raises:
        UnsupportedPatternError: rows refute a declaration.
    """
    for node, shown in _refuted(claims, base, values, rows):
        kind, name = declared(node), declared_name(node)
        raise UnsupportedPatternError(
            f"{name!r} was declared as {kind}, but {shown}",
            way_out=f"drop {name!r} from `kinds` (or its declare_op), or say what it is: attention, mixer, dense or "
            "routed; an operator that does several things is declared by the path of the module that it is called in",
            where=user_calls.where(node),
        )


def _refuted(
    claims: Sequence[Claim], base: fx.Node, values: Collection[fx.Node], rows: Mapping[fx.Node, RowFacts]
) -> Iterator[tuple[fx.Node, str]]:
    for claim in claims:
        found, kind = rows[claim.leaf], claim.term.kind
        does = {RowDependence.MOVED: "moves", RowDependence.MIXED: "mixes"}.get(found.state)
        if does is not None and found.at is not None and declared(found.at) in REFUTED_BY[does]:
            yield found.at, f"{user_calls.shown(found.at)!r} in it {does} rows"
        for node in claim.owned if found.state <= RowDependence.MOVED and not kind.mixes_tokens else ():
            if declared(node) != "dense":
                continue
            decides = rows[node].decided and not any(rows[arg].decided for arg in node.all_input_nodes)
            if decides or (kind is TermKind.ROUTED and not found.decided):
                yield node, f"a decision is made about whole rows of it ({claim.term.evidence})"
    for (_, said), nodes in _groups(base.graph).items():
        floating = [node for node in nodes if ops.is_floating(node) and node not in values]
        seen = [node for node in floating if rows[node].state is not RowDependence.FREE]
        if not seen or any(rows[node].state > RowDependence.MOVED for node in nodes):
            continue
        if said in MIXERS and not has_rows_of_one(base):
            yield seen[-1], "each row of it is computed by itself"
        elif said == "routed" and not any(rows[node].decided for node in nodes):
            yield seen[-1], "no decision is made about its rows"


def _groups(graph: fx.Graph) -> dict[tuple[str, DeclaredKind | None], list[fx.Node]]:
    """Map each operator or module that something was declared about to its nodes; a call of an operator is one."""
    found = defaultdict(list)
    for node in graph.nodes:
        name = declared_name(node)
        if name:
            call = f"{name} {node.name}" if name == ops.op_name(node) else name
            found[call, declared(node)].append(node)
    return found
