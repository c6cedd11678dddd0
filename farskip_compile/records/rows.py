# SPDX-License-Identifier: Apache-2.0
"""How many sub-blocks read what was asked for, and what they leave out, in a few words.

In:    the table of a graph with a residual stack, and the options that it was compiled with.
Out:   `SubBlockRows`: the sub-blocks that were to change and those that did; `in_words`: what each kind of them leaves
       out.
Never: takes the report's word for what was asked: that is derived again, from the table as written and the options.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from farskip_compile.errors import FarSkipError
from farskip_compile.passes.residual.table import ROW_NAMES, SubBlock, Table, TermKind
from farskip_compile.passes.rewire.request import ask
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
"""Ways of leaving something out that are named; others are counted."""


@dataclass(frozen=True)
class SubBlockRows:
    """Sub-blocks of one graph, by name."""

    rewired: tuple[str, ...]
    """Sub-blocks that were to change, and read what was asked for."""
    asked: tuple[str, ...] | None
    """Sub-blocks that were to change, or had the form already; None: not known, since the graph was refused."""
    total: int
    """Sub-blocks of the graph."""

    @classmethod
    def of(cls, table: Table, config: Mapping[str, Any]) -> SubBlockRows:
        """Return the sub-blocks of a whole model.

        Args:
            table: the table of the model.
            config: the options that the model was compiled with, as plain data.
        """
        connectivity, layers = config["connectivity"], config["layers"]
        if isinstance(connectivity, Mapping):
            connectivity = {row: tuple(terms) for row, terms in connectivity.items()}
        written, total = table.as_written(), len(table.rows)
        try:
            request = ask(written, connectivity, (layers[0], layers[1]) if layers is not None else None)
        except FarSkipError:
            return cls((), None, total)
        reads = {row.name: row.reads for row in table.rows}
        asked = [row.name for row in written.rows if row.name in request.left_out or row.name in request.already]
        wanted = [row for row in request.wanted(written).rows if row.name in asked]
        return cls(tuple(row.name for row in wanted if reads[row.name] == row.reads), tuple(asked), total)

    def __str__(self) -> str:
        if self.asked is None:
            return f"0 of {amount(self.total, 'row')}" if self.total else "no rows"
        if not self.asked:
            return f"none of {amount(self.total, 'row')} was to change"
        return f"{len(self.rewired)} of {amount(len(self.asked), 'row')} asked for ({self.total} in all)"


def in_words(table: Table) -> tuple[str, ...]:
    """Return the terms that the rewiring took away, one phrase for each way of leaving out.

    Such as `mlp and moe leave out the attention of their own layer`; with numbers of rows where those of a kind differ.
    """
    ways = Counter((row.kind, _terms(table, row)) for row in table.rows if row.left_out)
    ways_of_kind = Counter(kind for kind, _ in ways)
    alike: dict[tuple[str, int], list[TermKind]] = {}
    for kind, terms in sorted(ways, key=lambda one: (list(ROW_NAMES).index(one[0]), -ways[one])):
        rows = ways[kind, terms] if ways_of_kind[kind] > 1 else 0
        alike.setdefault((terms, rows), []).append(kind)
    found = [_phrase(kinds, terms, rows) for (terms, rows), kinds in alike.items()]
    others = [f"{len(found) - MOST} other ways"] if len(found) > MOST + 1 else found[MOST:]
    return (*found[:MOST], *others)


def _phrase(kinds: Sequence[TermKind], terms: str, rows: int) -> str:
    count = f" ({amount(rows, 'row')}{' each' if len(kinds) > 1 else ''})" if rows else ""
    *names, last = [ROW_NAMES[kind] for kind in kinds]
    if not names:
        return f"{last} leaves out {terms}{count}"
    return f"{', '.join(names)} and {last} leave out {terms.replace('of its own', 'of their own')}{count}"


def _terms(table: Table, row: SubBlock) -> str:
    nouns_by_distance: dict[int, dict[str, None]] = {}
    for index in row.left_out:
        term = table.terms[index]
        nouns_by_distance.setdefault(row.layer - term.layer, {})[NOUNS[term.kind]] = None
    places = {0: "of its own layer", 1: "of the layer before"}
    return " and ".join(
        f"{' and '.join(nouns)} {places.get(layers, f'of {layers} layers before')}"
        for layers, nouns in sorted(nouns_by_distance.items())
    )
