# SPDX-License-Identifier: Apache-2.0
"""The kinds of all terms once more, from the other side: what a sub-block does to rows must fit what it was taken for.

Contract: `check_kinds` is given the terms, what computes each, and the `RowFacts` of all nodes. It raises, or says
nothing. It does not ask how a kind was found.

    dense, shared       each row by itself, no decision about whole rows, and no cache
    routed              rows by themselves or moved as decisions say, and a decision about whole rows
    attention, mixer    not each row by itself

Where each row of the stream stands alone, in a step that decodes one token, attention can't be told from the rest by
its rows. There the last line is not asked for; that nothing else reads a cache is. Behind a whole network, of which the
first two lines hold, a convolution or scan along tokens may stand, with a cache of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from farskip_compile._compat import is_module_state, same_dim
from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.passes.graph import effects, ops, user_calls
from farskip_compile.passes.graph.declared import modules_of
from farskip_compile.passes.graph.walk import walk_back
from farskip_compile.passes.residual.table import Term, TermKind
from farskip_compile.verify.account.weights import has_weights
from farskip_compile.verify.rows.rules import is_contraction, never_mixes
from farskip_compile.verify.rows.state import RowDependence, RowFacts

LEAVE = (
    "if they are those of a second stack, compile the two stacks apart, each as a model of its own; or "
    'connectivity="none", which rewires nothing; or let the router read the stream, which is another model'
)
DECIDED = (
    "a decision is made about whole rows of it, or about what its weights are given, and not by a known selection of "
    "experts; features that are picked, as by top-k, look the same"
)
UNDECIDED = (
    "no decision is made about its rows that the residual stream has a part in: the experts are chosen by something "
    "else, such as a router that reads token ids through a table of its own"
)
ALONE = frozenset([TermKind.DENSE, TermKind.SHARED])
WAY_OUT = (
    "say what it is: farskip_compile.declare_op for a custom operator, options={'kinds': {...}} for any other or for a "
    "module, as in {'layers.*.moe': 'routed'}"
)


@dataclass(frozen=True)
class Claim:
    """What a term was taken for, and what computes it."""

    term: Term
    leaf: fx.Node
    """The node that is added."""
    owned: Collection[fx.Node]


def check_kinds(claims: Sequence[Claim], base: fx.Node, rows: Mapping[fx.Node, RowFacts]) -> None:
    """Compare the kind of each term with what the rows of its value show.

    Raises:
        UnsupportedPatternError: they contradict each other, or nothing is known.
    """
    graph = base.graph
    caches = _caches(graph)
    one_token = has_rows_of_one(base)
    for claim in claims:
        term = claim.term
        if term.kind is TermKind.EMBEDDING:
            continue
        behind = not term.kind.mixes_tokens and _is_behind_a_network(claim, rows)
        complaint, node = _complaint(term.kind, rows[claim.leaf], claim.leaf, one_token)
        complaint = None if behind else complaint
        alone = not term.kind.mixes_tokens and not behind
        if complaint is None and caches and alone:
            complaint, node = _reads_cache(claim, caches)
        if complaint is not None:
            picks = (
                f'if each token picks features of its own: options={{"kinds": {{"{_module(claim.leaf)}": "dense"}}}}; '
            )
            shown = complaint.format(user_calls.shown(node))
            raise UnsupportedPatternError(
                f"{term.name} was taken for {term.kind} ({term.evidence}), but {shown}",
                way_out=(picks if complaint is DECIDED else "") + (WAY_OUT if complaint is not UNDECIDED else LEAVE),
                where=user_calls.where(node, term.layer),
            )


def _complaint(kind: TermKind, rows: RowFacts, leaf: fx.Node, one_token: bool) -> tuple[str | None, fx.Node]:
    """What contradicts `kind`, and where."""
    at = rows.at or leaf
    if kind.mixes_tokens:
        return _about_mixer(kind, rows, one_token), at
    if rows.state is RowDependence.UNKNOWN or (rows.state is RowDependence.DECISION and not rows.layout):
        return "nothing is known of {!r} in it", at
    if rows.state is RowDependence.MIXED:
        return "{!r} mixes rows in it, and is not a known attention or mixer", at
    if kind is TermKind.ROUTED:
        return (None if rows.decided else UNDECIDED), at
    if rows.state is RowDependence.MOVED:
        return "{!r} moves rows in it", at
    return (DECIDED if rows.decided else None), at


def _is_behind_a_network(claim: Claim, rows: Mapping[fx.Node, RowFacts]) -> bool:
    """Return whether a convolution or scan behind a network of the term's own kind is all that mixes its rows.

    After it nothing applies weights or mixes rows, before it weights are applied to what weights have made.
    """
    at = rows[claim.leaf].at
    if rows[claim.leaf].state is not RowDependence.MIXED or at is None or not ops.is_scan(at):
        return False
    if rows[claim.leaf].decided is not (claim.term.kind is TermKind.ROUTED):
        return False
    owned = set(claim.owned)
    mixed = [node for node in owned if rows[node].state is RowDependence.MIXED]
    if not all(ops.is_scan(node) or never_mixes(node) for node in mixed):
        return False

    def products(nodes: Iterable[fx.Node]) -> list[fx.Node]:
        return [node for node in walk_back(nodes, lambda node: node not in owned) if has_weights(node)]

    first = products(at.all_input_nodes)
    return bool(products(arg for node in first for arg in node.all_input_nodes))


def _module(node: fx.Node) -> str:
    """The path of the module that `node` was traced in, for an example."""
    return next(iter([*modules_of(node)][::-1]), "") or "path.of.the.module"


def _about_mixer(kind: TermKind, rows: RowFacts, one_token: bool) -> str | None:
    if rows.state <= RowDependence.MOVED:
        return None if one_token else "each row of it is computed by itself"
    at = rows.at
    if at is not None and rows.state is RowDependence.MIXED and not (ops.is_attention(at) or is_known_mixer(at)):
        return f"{{!r}} mixes its rows, and is not a known {kind}"
    return None


def is_known_mixer(node: fx.Node) -> bool:
    """A product, a convolution, a scan or a running sum: what mixes rows in a known mixer."""
    return is_contraction(node) or ops.is_scan(node) or ops.op_name(node) == "cumsum"


def has_rows_of_one(base: fx.Node) -> bool:
    """Return whether the stream has one token, or one sequence: then mixing can't be seen along that dimension."""
    value = ops.tensor(base)
    assert value is not None
    return any(same_dim(size, 1) for size in value.shape[:-1])


# Caches


def _caches(graph: fx.Graph) -> set[int]:
    """Memory of inputs of the call that the graph writes to."""
    given = {effects.storage(node) for node in graph.nodes if node.op == "placeholder" and not is_module_state(node)}
    written = {effects.storage(base) for node in graph.nodes for base in effects.mutated_args(node)}
    return {memory for memory in given & written if memory is not None}


def _reads_cache(claim: Claim, caches: Collection[int]) -> tuple[str | None, fx.Node]:
    for node in claim.owned:
        if any(effects.storage(arg) in caches for arg in node.all_input_nodes):
            return "{!r} reads or writes a cache in it", node
    return None, claim.leaf
