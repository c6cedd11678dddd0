# SPDX-License-Identifier: Apache-2.0
"""How an operator passes rows on: a rule for each effect of the table of operators (`graph.operators`).

Contract: `apply` says what is known of a node from what is known of its arguments; less than is true in doubt, never
more. What an operator does to dimensions is read off its line in the table, and nowhere else. What a user declared
fills in what no rule knows; where a rule is sure, the rule holds, and whoever compares can see that they differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from farskip_compile._compat import is_data_dependent, is_module_state
from farskip_compile.passes.graph import comms, effects, ops
from farskip_compile.passes.graph.declared import declared, is_declared, outputs_of
from farskip_compile.passes.graph.operators import Effect, names_with, operator_named
from farskip_compile.verify.rows import collectives, picks, views
from farskip_compile.verify.rows.along import meet, normalises, one_hot, pointwise, reduced
from farskip_compile.verify.rows.arguments import first_of, is_data
from farskip_compile.verify.rows.moved import as_rows, moved_again
from farskip_compile.verify.rows.no_rule import alone, free, mixes, routed, unknown
from farskip_compile.verify.rows.products import biased, einsum, grouped, linear, matmul, product, scaled
from farskip_compile.verify.rows.state import (
    CHOSEN,
    DECISION,
    FREE,
    FactsOf,
    RowDependence,
    RowFacts,
    RowRule,
    decision_of,
    worst,
)


def apply(node: fx.Node, given: FactsOf) -> RowFacts:
    """Return what is known of the value of `node`."""
    name = ops.op_name(node)
    if not name or operator_named(name).effect is Effect.SIZE:
        return DECISION if name and _is_decided_size(node, given) else FREE
    args = list(map(given, node.all_input_nodes))
    if worst(args).state is RowDependence.FREE:
        chosen = any(one.picked for one in args) or (name in CHOICES and _chooses(node))
        return CHOSEN if chosen and not is_contraction(node) else FREE
    if is_declared(node):
        return _as_declared(node, given, args)
    return _undeclared(node, given, args)


def _undeclared(node: fx.Node, given: FactsOf, args: Sequence[RowFacts]) -> RowFacts:
    """Return the facts about the value of `node` that the rule of its operator gives."""
    state = max(one.state for one in args)
    if ops.op_name(node) == "after_write":
        # the buffer, which `read_rows` gives as what was written to it: integers may be data
        return views.same(node, given)
    if state is RowDependence.DECISION:
        about_themselves = all(one.layout for one in args if one.state is RowDependence.DECISION)
        return _of_decisions(node, _as_rows(given) if about_themselves else given)
    return _settled(node, _of_moved(node, given, args) if state is RowDependence.MOVED else _by_rule(node, given))


def _of_moved(node: fx.Node, given: FactsOf, args: Sequence[RowFacts]) -> RowFacts:
    """Of picked rows it must be known along which dimensions they are; only some rules hold wherever that is."""
    if all(one.layout for one in args if one.state is RowDependence.MOVED):
        return moved_again(node, _by_rule(node, as_rows(given)), args)
    return _by_rule(node, given) if never_mixes(node) else unknown(node, given)


def never_mixes(node: fx.Node) -> bool:
    """Whether no rows meet in `node`, along whichever dimensions they are."""
    return _effect(node) in WHEREVER


def _is_decided_size(node: fx.Node, given: FactsOf) -> bool:
    """Whether a size says how many rows were chosen."""
    value = ops.fake(node)
    sizes = value if isinstance(value, tuple | list) else (value,)
    known = any(isinstance(size, torch.SymInt) and is_data_dependent(size) for size in sizes)
    return known and any(given(arg).state is not RowDependence.FREE for arg in node.all_input_nodes)


def _of_decisions(node: fx.Node, given: FactsOf) -> RowFacts:
    """Return the facts of a value that is made of decisions alone: it is a decision."""
    if _is_one_number(node):
        return DECISION
    found = _by_rule(node, given)
    if found.state in (RowDependence.FREE, RowDependence.UNKNOWN):
        return _settled(node, found)
    parts = tuple(one if one.state <= RowDependence.DECISION else decision_of(one) for one in found.parts)
    member = found.state is RowDependence.DECISION and _is_member(node)
    return found if member else decision_of(found)._replace(parts=parts)


def _settled(node: fx.Node, found: RowFacts) -> RowFacts:
    """Integers and booleans are decisions, whatever they were made of."""
    if found.state is RowDependence.DECISION:
        return found if _is_member(node) else decision_of(found)
    if found.state is RowDependence.FREE:
        return found
    value = ops.tensor(node)
    return found if value is None or is_data(value) else decision_of(found)


def _is_member(node: fx.Node) -> bool:
    """Whether this is a member of a tuple."""
    return ops.op_name(node) == "getitem" and _is_tuple(node.args[0])


def _is_tuple(arg: object) -> bool:
    return isinstance(arg, fx.Node) and isinstance(ops.fake(arg), tuple | list)


def _by_rule(node: fx.Node, given: FactsOf) -> RowFacts:
    """Return what the rule of an operator says, and the numbers among its arguments."""
    is_wait = "::" in ops.op_name(node) and comms.is_wait(node)
    effect = Effect.POINTWISE if is_wait else _effect(node)
    rule = RULES.get(effect, unknown)
    numbers = [arg for arg in node.all_input_nodes if _is_one_number(arg)]
    number = worst([FREE, *map(given, numbers)]) if numbers else FREE
    found = unknown(node, given) if number.state > RowDependence.DECISION else rule(node, given)
    reads = effect not in (Effect.LIKE, Effect.ATTRIBUTE)
    if found.state is RowDependence.FREE and reads and first_of(node, given)[0] is None:
        return unknown(node, given)  # an argument that the rule has not found
    return _by_a_number(found) if number.state is RowDependence.DECISION else found


def _is_one_number(arg: fx.Node) -> bool:
    """Whether the value of a node is a size or a number; not that of a write, which may return nothing."""
    value = ops.fake(arg)
    if isinstance(value, torch.Tensor | tuple | list):
        return False
    return value is not None or not effects.mutated_args(arg)


def _by_a_number(found: RowFacts) -> RowFacts:
    """Of what a number that was decided has a part in: it is the same for all rows."""
    return found._replace(decided=True, parts=tuple(map(_by_a_number, found.parts)))


def _as_rows(given: FactsOf) -> FactsOf:
    """Decisions that rows make about themselves are passed on as rows are."""

    def read(arg: object) -> RowFacts:
        found = given(arg)
        return (
            found._replace(state=RowDependence.ROWS)
            if found.state is RowDependence.DECISION and found.layout
            else found
        )

    return read


def _as_declared(node: fx.Node, given: FactsOf, args: Sequence[RowFacts]) -> RowFacts:
    """One output, or several of which each was declared."""
    if (kind := declared(node)) is None:
        parts = tuple(DECLARED[kind](node, given) for kind in outputs_of(node))
        return worst(parts)._replace(parts=parts)
    found = _undeclared(node, given, args)
    if (
        kind == "dense"
        and sum(one.state is RowDependence.ROWS for one in args) == 1
        and ops.op_name(node) in CONTRACTIONS
    ):
        # weights are given features that a decision picked: those of the row itself, the user says
        found = found._replace(decided=any(one.decided for one in args))
    return found if _is_sure(node, kind, found, args) else DECLARED[kind](node, given)


def _is_sure(node: fx.Node, kind: str, found: RowFacts, args: Sequence[RowFacts]) -> bool:
    """Return whether the rule of an operator, which has `found` something, goes before what was declared."""
    from_rows = all(one.state <= RowDependence.ROWS for one in args)
    if kind in ("attention", "mixer"):
        return from_rows and (found.state in (RowDependence.FREE, RowDependence.ROWS) or bool(found.layout))
    if found.state is RowDependence.MIXED and from_rows:
        return kind == "dense" or (kind == "routed" and (ops.is_attention(node) or ops.is_scan(node)))
    return found.state <= RowDependence.MOVED


def _chooses(node: fx.Node) -> bool:
    """Whether an input of the call chooses rows of a table here, or is compared with numbers."""
    inputs = [arg for arg in node.all_input_nodes if ops.tensor(arg) is not None]
    by_call = [arg for arg in inputs if not ops.is_floating(arg) and not is_state(arg)]
    if ops.op_name(node) in COMPARES:
        return bool(by_call)
    return bool(by_call) and any(is_state(arg) and _is_stacked(arg) for arg in inputs)


def _is_stacked(node: fx.Node) -> bool:
    """Return whether `node` holds a matrix for each expert, not a vector for each token id."""
    value = ops.tensor(node)
    return value is not None and value.is_floating_point() and value.dim() >= 3


def is_state(node: fx.Node) -> bool:
    """Return whether `node` is a parameter or buffer."""
    return node.op == "get_attr" or (node.op == "placeholder" and is_module_state(node))


def _effect(node: fx.Node) -> Effect:
    return operator_named(ops.op_name(node)).effect


def attribute(node: fx.Node, given: FactsOf) -> RowFacts:
    """Read a shape, a type, or a part of a tensor: `real`, `mT`."""
    if ops.tensor(node) is None:
        return FREE
    by_name = {"T": views.backwards, "mT": views.last_two, "real": views.same, "imag": views.same}
    return by_name.get(str(node.args[1]), unknown)(node, given)


def is_contraction(node: fx.Node) -> bool:
    """Whether features meet in `node`: a product of matrices, a convolution, an operator that nothing is known of."""
    if is_declared(node):
        return declared(node) != "exchange"
    return ops.op_name(node).rstrip("_") in CONTRACTIONS or is_unknown(node)


def is_unknown(node: fx.Node) -> bool:
    """Whether nothing is known about an operator, or it holds a graph of its own."""
    name = ops.op_name(node)
    if is_declared(node) or comms.is_wait(node):
        return False
    return bool(name) and (name.startswith("higher_order::") or operator_named(name).effect not in RULES)


CONTRACTIONS = names_with(
    Effect.LINEAR,
    Effect.PRODUCT,
    Effect.VECTOR_PRODUCT,
    Effect.BIASED,
    Effect.SCALED,
    Effect.GROUPED,
    Effect.EINSUM,
    Effect.CONVOLUTION,
)
COMPARES = frozenset(["eq", "one_hot"])
CHOICES = COMPARES | ops.INDEX_OPS
RULES: dict[Effect, RowRule] = {
    Effect.LIKE: free,
    Effect.ATTRIBUTE: attribute,
    Effect.POINTWISE: pointwise,
    **dict.fromkeys([Effect.CAST, Effect.COPY, Effect.SAME, Effect.MARK], views.same),
    Effect.ONE_HOT: one_hot,
    **dict.fromkeys([Effect.VIEW, Effect.UNIT], views.view),
    **dict.fromkeys([Effect.TRANSPOSE, Effect.PERMUTE, Effect.MOVE], views.turned),
    Effect.EXPAND: views.expand,
    Effect.REPEAT: views.repeated,
    Effect.INTERLEAVE: picks.interleaved,
    Effect.PLACE: views.resized,
    Effect.PAIRS: views.as_pairs,
    Effect.PAD: views.padded,
    **dict.fromkeys([Effect.SPLIT, Effect.UNBIND], views.pieces),
    **dict.fromkeys([Effect.JOIN, Effect.STACK], views.joined),
    Effect.ITEM: picks.getitem,
    Effect.INDEX: picks.indexed,
    **dict.fromkeys([Effect.PICK, Effect.PICK_ROWS], picks.along_dim),
    Effect.TABLE: picks.embedded,
    **dict.fromkeys([Effect.PUT, Effect.PUT_ROWS, Effect.ADD_ROWS, Effect.ADD_FIRST], picks.written),
    **dict.fromkeys([Effect.WRITE, Effect.WRITE_MASKED, Effect.OVERWRITE], picks.written),
    Effect.ADD_ALONE: picks.added,
    **dict.fromkeys([Effect.ALONG, Effect.ROLL, Effect.SORT, Effect.BEST, Effect.SLICE], meet),
    **dict.fromkeys([Effect.REDUCE, Effect.SUM, Effect.TAKE_BEST, Effect.SELECT], reduced),
    Effect.NORM: normalises,
    Effect.LINEAR: linear,
    Effect.VECTOR_PRODUCT: matmul,
    Effect.PRODUCT: product,
    Effect.BIASED: biased,
    Effect.SCALED: scaled,
    Effect.GROUPED: grouped,
    Effect.EINSUM: einsum,
    **dict.fromkeys([Effect.ATTENTION, Effect.CONVOLUTION], mixes),
    Effect.ROW_KERNEL: alone,
    Effect.GATHER: collectives.gathered,
    Effect.SCATTER: collectives.scattered,
    Effect.EXCHANGE: collectives.exchanged,
}
"""The rule for each effect; without one, nothing is known of the result."""

WHEREVER = frozenset(
    [
        *(Effect.POINTWISE, Effect.CAST, Effect.COPY, Effect.SAME, Effect.MARK),
        *(Effect.VIEW, Effect.UNIT, Effect.TRANSPOSE),
        *(Effect.ITEM, Effect.INDEX, Effect.PUT, Effect.PUT_ROWS, Effect.ADD_ROWS, Effect.ADD_FIRST),
        *(Effect.WRITE, Effect.WRITE_MASKED, Effect.OVERWRITE, Effect.ADD_ALONE),
    ]
)
"""Effects whose rules hold for picked rows of which nobody knows along which dimensions they are."""


def exchange(node: fx.Node, given: FactsOf) -> RowFacts:
    """Rows go to other ranks, alone or with what belongs to them."""
    return collectives.exchanged(node, given) if ops.tensor(node) is not None else routed(node, given)


DECLARED: dict[str, RowRule] = {
    "attention": mixes,
    "mixer": mixes,
    "routed": routed,
    "dense": alone,
    "reduction": pointwise,
    "exchange": exchange,
}
