# SPDX-License-Identifier: Apache-2.0
"""What is asked for: from a connectivity and a layer range to the terms that each sub-block leaves out.

In:    the table of the graph as it is, and what the user asks for.
Out:   a `RewireRequest`: for each row that changes, the terms to leave out; and the rows that already leave them out.
Never: adds a read; changes a row outside the range; guesses (what can't be met exactly is an error).

Rules (arXiv 2511.11505 sections 3 and 5.1; L is a layer in the range):
  attention row of L  leaves out the routed terms of layer L-1, whether L-1 is in the range or not   (full, attention)
  feed-forward row of L  leaves out the attention of L; a dense layer is treated like a MoE          (full, mlp)
lag2, beside full:
  MoE row of L  leaves out the routed terms of layer L-1, too: an exchange may last as long as a layer
ladder (arXiv 2501.06589), on dense models too: each sub-block leaves out what the one before it adds
  attention row of L  leaves out all that the feed-forward rows of layer L-1 add
  feed-forward row of L  leaves out the attention of L
A sub-block of the first layer, of a layer after a dense one or in a parallel block has less or nothing to leave out;
the final norm always reads everything. A shortcut MoE (arXiv 2404.05019, LongCat-Flash) hides its collectives under a
whole layer already: where all routed experts are such, there is nothing to change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

from farskip_compile.base.choices import ConnectivityName
from farskip_compile.errors import (
    ConnectivityError,
    DenseModelError,
    InseparableExpertsError,
    LayerRangeError,
)
from farskip_compile.passes.residual.table import NOTHING, SubBlock, Table, Term, TermKind
from farskip_compile.passes.residual.termset import TermSet

Connectivity = ConnectivityName | Mapping[str, Sequence[str]]
LayerRange = tuple[int, int] | None
Leaving = ConnectivityName | frozenset[str]
"""What is asked of the parts of a model that are still to come: by name, or names of terms that they leave out."""


@dataclass(frozen=True)
class RewireRequest:
    """Terms to leave out, by row name."""

    left_out: Mapping[str, TermSet]
    already: tuple[str, ...] = ()
    """Rows that `connectivity` concerns, and that leave these terms out already."""
    leaving: TermSet = NOTHING
    """Of a part of a model: terms that sub-blocks of the next part may leave out."""

    def wanted(self, table: Table) -> Table:
        """The table as it must read after rewiring."""
        return table.without(self.left_out)


def ask(
    table: Table, connectivity: Connectivity, layers: LayerRange = None, leaving: Leaving | None = None
) -> RewireRequest:
    """Translate what the user asks of `table` into a `RewireRequest`.

    Of a part of a model, which may be to change nothing, it is known what is asked of later parts: `leaving`.

    Raises:
        DenseModelError: no sub-block of the model is a MoE, and a connectivity by name is about these.
        LayerRangeError: the range lies outside the model, or holds nothing that could be left out.
        ConnectivityError: a user's table names a row or a term that is absent or not read.
        InseparableExpertsError: routed and shared output are summed before a step that can't be split.
    """
    _check_range(table, layers)
    if leaving is not None:
        return _of_a_part(table, connectivity, leaving)
    if connectivity == "none":
        return RewireRequest({})
    if isinstance(connectivity, Mapping):
        return _from_user(table, connectivity)
    if not table.has_routed and connectivity != "ladder":
        kinds = ", ".join(dict.fromkeys(str(row.kind) for row in table.rows))
        raise DenseModelError(
            f"no routed experts in the residual stack ({len(table.rows)} sub-blocks, all of kind {kinds})",
            way_out='compile dense models with backend="inductor", or with connectivity="ladder" under tensor '
            "parallelism; if this is a MoE, `farskip explain` shows what each sub-block was taken for",
        )
    if table.has_routed and all(is_shortcut(table, row) for row in table.rows if row.kind is TermKind.ROUTED):
        return RewireRequest({}, tuple(row.name for row in table.rows if row.kind is TermKind.ROUTED))
    left_out, already = _by_rule(table, connectivity, layers)
    if not left_out and not already:
        where, way_out = "in any layer", "another connectivity, or connectivity='none'"
        if layers is not None:
            where = f"in layers {layers}"
            way_out = f"widen `layers` (the model has layers 0 to {table.num_layers - 1})"
        raise LayerRangeError(
            f"connectivity {connectivity!r} changes nothing {where}: no sub-block there reads what it would leave out",
            way_out=way_out,
        )
    _refuse_inseparable(table, left_out)
    return RewireRequest(left_out, tuple(already))


def _by_rule(table: Table, connectivity: ConnectivityName, layers: LayerRange) -> tuple[dict[str, TermSet], list[str]]:
    """What rows leave out, and the rows that already do."""
    left_out: dict[str, TermSet] = {}
    already: list[str] = []
    for row in table.rows:
        terms = rule(table, row, connectivity)
        if not terms or (layers is not None and not layers[0] <= row.layer <= layers[1]):
            continue
        if terms & row.reads:
            left_out[row.name] = terms & row.reads
        else:
            already.append(row.name)
    return left_out, already


def _of_a_part(table: Table, connectivity: Connectivity, leaving: Leaving) -> RewireRequest:
    """What is asked of a part of a model; whether it is what is asked of the whole is seen once all parts are known."""
    later = may_leave_out_later(table, leaving)
    if isinstance(connectivity, Mapping):
        try:
            asked = _from_user(table, connectivity)
        except ConnectivityError as error:
            reason = f"{error.reason}; in a layer that is compiled by itself, which it calls layer 0"
            raise ConnectivityError(reason, way_out=error.way_out) from error
        _refuse_inseparable(table, {"a later sub-block": later})
        return RewireRequest(asked.left_out, leaving=later)
    routed = [row for row in table.rows if row.kind is TermKind.ROUTED]
    if routed and all(is_shortcut(table, row) for row in routed):
        return RewireRequest({}, tuple(row.name for row in routed))
    left_out, already = _by_rule(table, connectivity, None)
    _refuse_inseparable(table, {**left_out, "the next attention": later})
    return RewireRequest(left_out, tuple(already), later)


def rule(table: Table, row: SubBlock, connectivity: ConnectivityName) -> TermSet:
    """The terms that `row` leaves out under `connectivity`, whether it reads them or not."""
    if connectivity == "none":
        return NOTHING
    before = [term for term in table.terms_of(row.layer - 1) if not term.kind.mixes_tokens]
    if row.kind.mixes_tokens:
        if connectivity == "mlp":
            return TermSet()
        if connectivity == "ladder":
            return TermSet.of(term.index for term in before)
        return _routed(before)
    if connectivity == "attention":
        return TermSet()
    mixers = TermSet.of(term.index for term in table.terms_of(row.layer) if term.kind.mixes_tokens)
    return mixers | _routed(before) if connectivity == "lag2" and row.kind is TermKind.ROUTED else mixers


def _routed(terms: Iterable[Term]) -> TermSet:
    return TermSet.of(term.index for term in terms if term.kind is TermKind.ROUTED)


def may_leave_out_later(table: Table, leaving: Leaving) -> TermSet:
    """For a part of a model: its terms that may be taken away from sub-blocks of later parts.

    By name, these sub-blocks are the mixer of the next layer; and the feed-forward part of the last layer, if that has
    none yet.
    """
    if isinstance(leaving, frozenset):
        return TermSet.of(sorted(term.index for term in table.terms if term.name in leaving))
    last, new = table.num_layers - 1, (len(table.terms),)
    coming = [SubBlock("next", TermKind.ATTENTION, last + 1, new, NOTHING)]
    if all(row.kind.mixes_tokens for row in table.rows_of(last)):
        coming.append(SubBlock("next", TermKind.ROUTED, last, new, NOTHING))
    return reduce(or_, (rule(table, row, leaving) for row in coming)) & table.everything


def is_shortcut(table: Table, row: SubBlock) -> bool:
    """Whether a MoE stands beside a whole layer: it reads neither the mixer nor a dense block added before it is."""
    missed = table.earlier(row) - row.reads
    others = [other for other in table.rows if other.terms[0] in missed]
    return any(o.kind.mixes_tokens for o in others) and any(o.kind is TermKind.DENSE for o in others)


def _check_range(table: Table, layers: LayerRange) -> None:
    if layers is None:
        return
    first, last = layers
    if not 0 <= first <= last < table.num_layers:
        raise LayerRangeError(
            f"layers {layers} lies outside the model, which has layers 0 to {table.num_layers - 1}",
            way_out="give (first, last), both inclusive; a layer begins at each attention or other token mixer",
        )


def _from_user(table: Table, asked: Mapping[str, Sequence[str]]) -> RewireRequest:
    left_out: dict[str, TermSet] = {}
    for row_name, term_names in asked.items():
        row = table.row(row_name)
        if row is None:
            raise ConnectivityError(
                f"the connectivity table names the sub-block {row_name!r}, which the model does not have",
                way_out=f"sub-blocks of this model: {_some([r.name for r in table.rows])}",
            )
        for name in term_names:
            term = table.term(name)
            if term is None or term.index not in row.reads:
                why = "does not have" if term is None else f"has, but {row_name!r} does not read"
                raise ConnectivityError(
                    f"the connectivity table leaves out the term {name!r}, which the model {why}",
                    way_out=f"terms that {row_name!r} reads: {_some(table.names(row.reads))}",
                )
        dropped = TermSet.of(table.term(name).index for name in term_names)  # type: ignore[union-attr]
        if not row.reads - dropped:
            raise ConnectivityError(
                f"the connectivity table leaves {row_name!r} nothing to read",
                way_out="keep at least one term",
            )
        if 0 in dropped:
            raise ConnectivityError(
                f"the connectivity table leaves the embedding {table.terms[0].name!r} out of {row_name!r}: what is "
                "left is not a residual value",
                way_out="leave out terms of sub-blocks only",
            )
        if dropped:
            left_out[row_name] = dropped
    _refuse_inseparable(table, left_out)
    return RewireRequest(left_out)


def _refuse_inseparable(table: Table, left_out: Mapping[str, TermSet]) -> None:
    for row_name, terms in left_out.items():
        for term in (table.terms[index] for index in terms):
            if (step := term.inseparable) is not None:
                raise InseparableExpertsError(
                    f"{row_name} must read the shared experts of layer {term.layer} without the routed ones, but both "
                    f"are summed before {step.operator!r}, which is not linear",
                    way_out="apply that step to each branch before the sum, compile in eval mode if it is a dropout, "
                    'or use connectivity="mlp"',
                    where=step.where,
                )


def _some(names: list[str], most: int = 12) -> str:
    head = ", ".join(names[:most])
    return f"{head}, ... ({len(names)} in all)" if len(names) > most else head
