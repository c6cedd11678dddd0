# SPDX-License-Identifier: Apache-2.0
"""What kind of sub-block computes a term: decided by dataflow alone.

In:    the `Stream` of a graph, the `KindFacts` about its nodes and the `Region` of each term.
Out:   for each term a `Finding`: kind, evidence (the node that decided), and whether a routed term holds its shared
       expert inside.
Never: reads module names, class names or parameter names.

Algorithm:
1. For each region the first piece of evidence that one of its nodes gives, in lists tried in this order:
     ATTENTION  a fused attention operator, or a softmax of scores;
     MIXER      a scan or convolution along tokens, or a product of two unselected activations;
     EXPERTS    an all-to-all; or, in a selected term, where expert weights are reached: stacked (3-D) weights, a weight
                or token rows picked by the selection, an unselected product scaled per token by a selected gate; or,
                if none is, tokens or a weight that such a gate scales as they are (experts that copy, constant ones).
   Without evidence it is dense.
2. A routed term may hold its shared expert inside: a sum of a selected and an unselected product.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.passes.graph import comms, ops, user_calls
from farskip_compile.passes.graph.declared import declared, declared_name
from farskip_compile.passes.residual.carried import CarriedValue, carried
from farskip_compile.passes.residual.facts import KindFacts, picked_data
from farskip_compile.passes.residual.regions import Region
from farskip_compile.passes.residual.stream import Stream
from farskip_compile.passes.residual.sums import images_of
from farskip_compile.passes.residual.table import TermKind

PICKS_ROWS = frozenset(["index", "getitem", "index_select", "embedding"])
PICKS_ENTRIES = frozenset(["gather", "take_along_dim"])
"""They pick rows only by an index that is the same for all features."""


@dataclass(frozen=True)
class Finding:
    """The kind of a term and what shows it."""

    kind: TermKind
    evidence: str
    node: fx.Node | None = None
    shared_inside: fx.Node | None = None
    """The sum of routed and shared output that lies inside the term, before a step that can't be split."""
    inseparable: fx.Node | None = None
    """The step after that sum that is neither linear nor a normalisation."""
    carried: CarriedValue | None = None
    """It was computed in another graph."""


@dataclass(frozen=True)
class KindEvidence:
    """What a node may show about the kind of the term that it computes."""

    text: str
    """For reports; may name the `{operator}`, and what was `{declared}`."""
    holds: Callable[[KindFacts, fx.Node], bool]


# Step 1


def _is_softmax_of_scores(facts: KindFacts, node: fx.Node) -> bool:
    return "softmax" in ops.op_name(node) and not facts.met.isdisjoint(node.all_input_nodes)


def _is_product_of_activations(facts: KindFacts, node: fx.Node) -> bool:
    return ops.is_matmul(node) and node in facts.scored


def _is_cumsum_along_tokens(facts: KindFacts, node: fx.Node) -> bool:
    return ops.op_name(node) == "cumsum" and node not in facts.selected and ops.is_floating(node)


def _selects_groups(facts: KindFacts, node: fx.Node) -> bool:
    return "grouped" in ops.op_name(node) and bool(_weights_of_product(facts, node))


def _meets_stacked_weights(facts: KindFacts, node: fx.Node) -> bool:
    return any(weight.dim() >= 3 for weight in _weights_of_product(facts, node))


def _weights_of_product(facts: KindFacts, node: fx.Node) -> list[torch.Tensor]:
    if not ops.is_matmul(node):
        return []
    return [value for arg in node.all_input_nodes if arg in facts.weight and (value := ops.tensor(arg)) is not None]


def _picks_weight(facts: KindFacts, node: fx.Node) -> bool:
    data = _data_picked_by_selection(facts, node)
    return data is not None and data in facts.weight


def _picks_token_rows(facts: KindFacts, node: fx.Node) -> bool:
    data = _data_picked_by_selection(facts, node)
    if data is None or data in facts.weight or not _picks_whole_rows(node):
        return False
    return data in facts.projected or data in facts.stream.depends


def _picks_whole_rows(node: fx.Node) -> bool:
    if ops.op_name(node) in PICKS_ENTRIES:
        return any(ops.repeats_along_features(arg) for arg in node.all_input_nodes if not ops.is_floating(arg))
    return ops.op_name(node) in PICKS_ROWS


def _data_picked_by_selection(facts: KindFacts, node: fx.Node) -> fx.Node | None:
    """What a selected index picks elements of."""
    data = picked_data(node) if ops.op_name(node) in ops.INDEX_OPS else None
    if data is None or data in facts.selected or not ops.is_floating(data):
        return None
    return None if facts.selected.isdisjoint(node.all_input_nodes) else data


def _scales_by_selected_gate(facts: KindFacts, node: fx.Node) -> bool:
    return any(value in facts.projected for value in _scaled_by_selected_gates(facts, node))


def _scales_tokens_by_selected_gate(facts: KindFacts, node: fx.Node) -> bool:
    stream = facts.stream
    return any(
        one in stream.depends or stream.is_residual(one) or one in facts.weight or ops.is_zeros(one)
        for one in _scaled_by_selected_gates(facts, node)
    )


def _scaled_by_selected_gates(facts: KindFacts, node: fx.Node) -> list[fx.Node]:
    """Return what a product scales by one number for each token that depends on a selection, as the value does not."""
    if ops.op_name(node) != "mul" or len(node.args) != 2:
        return []
    return [
        value
        for gate, value in (node.args, node.args[::-1])
        if isinstance(gate, fx.Node)
        and isinstance(value, fx.Node)
        and gate in facts.selected
        and ops.is_per_token(gate)
        and value not in facts.selected
    ]


def _meets_selected_mask(facts: KindFacts, node: fx.Node) -> bool:
    """A product of a mask that a selection made with activations that it did not touch: dispatch or combine."""
    if not ops.is_matmul(node):
        return False
    inputs = [arg for arg in node.all_input_nodes if ops.is_floating(arg)]
    masks = [arg for arg in inputs if arg in facts.selected]
    others = [arg for arg in inputs if arg not in facts.selected and arg not in facts.weight]
    return bool(masks) and any(arg in facts.stream.depends or facts.stream.is_residual(arg) for arg in others)


ATTENTION = (
    KindEvidence("{operator}", lambda facts, node: ops.is_attention(node)),
    KindEvidence("softmax of a product of two activations", _is_softmax_of_scores),
)
MIXER = (
    KindEvidence("{operator} in {declared}, declared as a mixer", lambda facts, node: declared(node) == "mixer"),
    KindEvidence("{operator} along tokens", lambda facts, node: ops.is_scan(node)),
    KindEvidence("product of two activations", _is_product_of_activations),
    KindEvidence("cumsum along tokens", _is_cumsum_along_tokens),
)
EXCHANGE = (
    KindEvidence("all-to-all of tokens", lambda facts, node: comms.is_all_to_all(node)),
    KindEvidence("{operator} was declared as an exchange", lambda facts, node: declared(node) == "exchange"),
)
EXPERTS = (
    KindEvidence("{operator} was declared as routed", lambda facts, node: declared(node) == "routed"),
    KindEvidence("top-k selects groups of {operator}", _selects_groups),
    KindEvidence("top-k decides what meets a stacked expert weight", _meets_stacked_weights),
    KindEvidence("top-k picks the expert weight", _picks_weight),
    KindEvidence("top-k picks token rows", _picks_token_rows),
    KindEvidence("a selected mask meets the tokens, or what experts made of them", _meets_selected_mask),
    KindEvidence("a selected gate scales an expert's output per token", _scales_by_selected_gate),
)
COPIES = (
    KindEvidence("a selected gate scales tokens, a weight or zeros as they are", _scales_tokens_by_selected_gate),
)
"""Experts without computation, if a term shows no others."""


def classify(stream: Stream, facts: KindFacts, region: Region) -> Finding:
    """The kind of the term that `region` computes.

    Raises:
        UnsupportedPatternError: tokens are mixed by something other than attention around routed experts.
    """
    if not region.owned:
        known = carried(images_of(region.leaf, stream.below))
        if known is not None and known.kind is not TermKind.EMBEDDING:
            return Finding(known.kind, known.evidence, region.leaf, carried=known)
        return Finding(TermKind.EMBEDDING, "reads no residual value")
    nodes = sorted(region.owned, key=stream.order.__getitem__)
    if attention := _first(ATTENTION, TermKind.ATTENTION, facts, nodes):
        return attention
    mixing = _first(MIXER, TermKind.MIXER, facts, nodes)
    routing = _first(EXCHANGE, TermKind.ROUTED, facts, region.owned)
    if routing is None and region.leaf in facts.selected:
        routing = _first(EXPERTS, TermKind.ROUTED, facts, nodes) or _first(COPIES, TermKind.ROUTED, facts, nodes)
    behind = _scans_behind(facts, nodes)
    if mixing is not None and routing is not None and not _are_behind_experts(facts, behind):
        raise UnsupportedPatternError(
            f"one term of the residual stream holds routed experts ({routing.evidence}) and mixes tokens "
            f"({mixing.evidence}), so it is neither an attention nor a MoE sub-block",
            way_out=_drop(mixing) + "add the two parts to the stream one by one",
            where=user_calls.where(mixing.node or region.leaf),
        )
    if routing is not None:
        return _with_shared_inside(facts, region, routing)
    if behind:
        return Finding(
            TermKind.DENSE, f"{user_calls.shown(behind[0])} along tokens behind a feed-forward network", behind[0]
        )
    return mixing or Finding(TermKind.DENSE, "no token mixing, no selection", region.leaf)


def _drop(mixing: Finding) -> str:
    if mixing.node is None or declared(mixing.node) != "mixer":
        return ""
    return f"drop {declared_name(mixing.node)!r} from `kinds` if it does not mix tokens; "


def _are_behind_experts(facts: KindFacts, scans: Collection[fx.Node]) -> bool:
    """Whether all of `scans`, which are some, work on what depends on a selection."""
    results = [not facts.selected.isdisjoint(node.all_input_nodes) for node in scans]
    return bool(results) and all(results)


def _scans_behind(facts: KindFacts, nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """The convolutions and scans along tokens, if nothing else mixes these and they stand behind a feed-forward
    network: weights of weights before them, no weights after them."""
    mixing = [node for node in nodes if any(one.holds(facts, node) for one in MIXER)]
    if not mixing or not all(map(ops.is_scan, mixing)):
        return []
    products: dict[fx.Node, int] = {}
    scanned: set[fx.Node] = set()
    for node in nodes:
        applies = node not in mixing and bool(_weights_of_product(facts, node))
        products[node] = applies + max((products.get(arg, 0) for arg in node.all_input_nodes), default=0)
        if node in mixing or not scanned.isdisjoint(node.all_input_nodes):
            if applies or products[node] < 2:
                return []
            scanned.add(node)
    return mixing


def _first(
    evidence: Iterable[KindEvidence], kind: TermKind, facts: KindFacts, nodes: Iterable[fx.Node]
) -> Finding | None:
    """What the first node shows that shows anything."""
    found = ((one, node) for node in nodes for one in evidence if one.holds(facts, node))
    first = next(found, None)
    if first is None:
        return None
    shown, node = first
    return Finding(kind, shown.text.format(operator=user_calls.shown(node), declared=declared_name(node)), node)


# Step 2


def _with_shared_inside(facts: KindFacts, region: Region, routing: Finding) -> Finding:
    """`routing`; walks back to a sum of routed and shared output inside the term, and notes what follows that sum."""
    owned = set(region.owned)
    path: list[fx.Node] = []
    current: fx.Node | None = region.leaf
    while current is not None:
        if _adds_unselected_product(facts, current):
            blocking = next((step for step in path if not _is_for_both(facts.stream, step)), None)
            return replace(routing, shared_inside=current, inseparable=blocking)
        path.append(current)
        inputs = () if ops.is_matmul(current) else current.all_input_nodes
        routed = (arg for arg in inputs if arg in facts.selected and arg in owned and arg in facts.projected)
        current = min(routed, key=facts.stream.order.__getitem__, default=None)
    return routing


def _adds_unselected_product(facts: KindFacts, node: fx.Node) -> bool:
    """Whether `node` is a sum of which exactly one summand is a product that no selection has touched."""
    return ops.is_sum(node) and sum(arg in facts.projected and arg not in facts.selected for arg in node.args) == 1


def _is_for_both(stream: Stream, node: fx.Node) -> bool:
    """A step that keeps shared and routed experts one term: both are left out. A reduction is one as far as it is read
    as linear: of one whose data is not its first argument, nobody could tell the parts."""
    if comms.is_linear_collective(node):
        return bool(stream.below[node])
    return ops.is_scan(node) or ops.is_norm(node) or comms.is_wait(node)
