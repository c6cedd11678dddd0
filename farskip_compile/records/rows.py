# SPDX-License-Identifier: Apache-2.0
"""How many sub-blocks read what was asked for, and what they leave out, in a few words.

In:    the report of a graph with a residual stack.
Out:   `SubBlockRows`: the sub-blocks that were to change and those that did; `in_words`: what each kind of them leaves
       out.
Never: takes the report's word for what was asked: that is derived again, from the table as written and the options.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from farskip_compile.errors import FarSkipError
from farskip_compile.passes.residual.table import ROW_NAMES, SubBlock, Table, TermKind
from farskip_compile.passes.rewire.request import ask
from farskip_compile.records.compile import CompileReport, Outcome
from farskip_compile.text_utils import amount

NOUNS = {
    TermKind.EMBEDDING: "the embedding",
    TermKind.ATTENTION: "the attention",
    TermKind.MIXER: "the mixer",
    TermKind.DENSE: "the MLP",
    TermKind.SHARED: "the shared experts",
    TermKind.ROUTED: "the routed experts",
}
MOST = 4
"""Ways of leaving something out that are told; others are counted."""


@dataclass(frozen=True)
class SubBlockRows:
    """Sub-blocks of one graph, by name."""

    rewired: tuple[str, ...]
    """Those that were to change, and read what was asked for."""
    asked: tuple[str, ...] | None
    """Those that were to change, or had the form already; None: it can't be told, since the graph was refused."""
    total: int
    """Of the graph."""

    @classmethod
    def of(cls, report: CompileReport) -> SubBlockRows:
        """The sub-blocks of `report`. Those of a part of a model are counted as they are: what was asked of it depends
        on what comes before it."""
        table, total = report.table, len(report.rows)
        if report.outcome is Outcome.REFUSED:
            return cls((), None, total)
        if report.departure is not None or not total:
            return cls(report.rewired_rows, report.rewired_rows, total)
        connectivity, layers = report.config["connectivity"], report.config["layers"]
        if isinstance(connectivity, Mapping):
            connectivity = {row: tuple(terms) for row, terms in connectivity.items()}
        written = table.as_written()
        try:
            request = ask(written, connectivity, (layers[0], layers[1]) if layers is not None else None)
        except FarSkipError:
            return cls((), None, total)
        wanted = request.wanted(written)
        asked = [row.name for row in written.rows if row.name in request.left_out or row.name in request.already]
        reads = {row.name: row.reads for row in table.rows}
        return cls(
            tuple(row.name for row in wanted.rows if row.name in asked and reads[row.name] == row.reads),
            tuple(asked),
            total,
        )

    def __str__(self) -> str:
        if self.asked is None:
            return f"0 of {amount(self.total, 'row')}" if self.total else "no rows"
        if not self.asked:
            return f"none of {amount(self.total, 'row')} was to change"
        return f"{len(self.rewired)} of {amount(len(self.asked), 'row')} asked for ({self.total} in all)"


def in_words(table: Table) -> tuple[str, ...]:
    """What the rewiring took away, one phrase for each way of leaving out:
    `attention leaves out the routed experts of the layer before`, `mlp and moe leave out the attention of their own
    layer`. With numbers of rows where those of one kind differ."""
    ways = Counter((row.kind, _terms(table, row)) for row in table.rows if row.left_out)
    kinds = Counter(kind for kind, _ in ways)
    alike: dict[tuple[str, int], list[TermKind]] = {}
    for kind, terms in sorted(ways, key=lambda one: (list(ROW_NAMES).index(one[0]), -ways[one])):
        rows = ways[kind, terms] if kinds[kind] > 1 else 0
        alike.setdefault((terms, rows), []).append(kind)
    found = [_phrase(kinds, terms, rows) for (terms, rows), kinds in alike.items()]
    others = [f"{len(found) - MOST} other ways"] if len(found) > MOST + 1 else found[MOST:]
    return (*found[:MOST], *others)


def _phrase(kinds: list[TermKind], terms: str, rows: int) -> str:
    count = f" ({amount(rows, 'row')}{' each' if len(kinds) > 1 else ''})" if rows else ""
    if len(kinds) == 1:
        return f"{ROW_NAMES[kinds[0]]} leaves out {terms}{count}"
    names = [ROW_NAMES[kind] for kind in kinds]
    return f"{', '.join(names[:-1])} and {names[-1]} leave out {terms.replace('of its own', 'of their own')}{count}"


def _terms(table: Table, row: SubBlock) -> str:
    terms: dict[int, dict[str, None]] = {}
    for index in row.left_out:
        term = table.terms[index]
        terms.setdefault(row.layer - term.layer, {})[NOUNS[term.kind]] = None
    return " and ".join(f"{' and '.join(nouns)} {_of_layer(ago)}" for ago, nouns in sorted(terms.items()))


def _of_layer(ago: int) -> str:
    if ago == 0:
        return "of its own layer"
    return "of the layer before" if ago == 1 else f"of {ago} layers before"
