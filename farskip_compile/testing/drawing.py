# SPDX-License-Identifier: Apache-2.0
"""A connectivity table in which the wrong cells are marked, for the text of a failed assertion.

Contract: plain characters without colours, `failure.WIDTH` columns at most. Of a large model it shows the first wrong
sub-blocks with a few around them, and of the terms those in question and as many of their neighbours as fit.

    sub-block    e  a0  r0  a1  r1
    attention.1  x   x [x]   +          [x] read, and must not be
    moe.1        x   x   x   .   +      [ ] not read, and must be
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from farskip_compile.passes.residual.table import SubBlock, Table
from farskip_compile.passes.residual.termset import TermSet
from farskip_compile.testing.failure import WIDTH

INDENT = 2
MOST_ROWS = 9
ROWS_BEFORE = 2
GAP = ".."
LEGEND = "[x] read, must not be  [ ] not read, must be  x read  . not read  + its own"


@dataclass(frozen=True)
class WrongRow:
    """A sub-block that does not read what it has to."""

    row: SubBlock
    extra: TermSet
    """Read, and must not be."""
    missing: TermSet
    """Not read, and must be."""

    def text(self, table: Table) -> str:
        """In words."""
        parts = [
            f"{verb} {', '.join(table.names(terms))}"
            for verb, terms in (("must not read", self.extra), ("must read", self.missing))
            if terms
        ]
        return f"{self.row.name} " + " and ".join(parts)


def wrong_rows(table: Table, reads: Mapping[str, TermSet], expected: Mapping[str, TermSet]) -> list[WrongRow]:
    """The rows of `table` that read something else than `expected`."""
    pairs = ((row, reads[row.name], expected[row.name]) for row in table.rows)
    return [WrongRow(row, found - wanted, wanted - found) for row, found, wanted in pairs if found != wanted]


def drawing(table: Table, reads: Mapping[str, TermSet], wrong: Sequence[WrongRow]) -> str:
    """What the rows of `table` read, as far as it concerns the `wrong` ones (at least one), which are marked."""
    marked = {one.row.name: one for one in wrong}
    first = next(place for place, row in enumerate(table.rows) if row.name in marked)
    start = max(0, min(first - ROWS_BEFORE, len(table.rows) - MOST_ROWS))
    rows = table.rows[start : start + MOST_ROWS]
    names = max(len("sub-block"), *(len(row.name) for row in rows))
    width = 1 + max(3, *(len(term.name) for term in table.terms))
    columns = _columns(table, rows, marked, (WIDTH - 2 * INDENT - names) // width)
    labels = (GAP if column is None else table.terms[column].name for column in columns)
    lines = [f"{'sub-block':<{names}}" + "".join(f"{label:>{width}}" for label in labels)]
    for row in rows:
        cells = (_cell(row, reads[row.name], marked.get(row.name), column) for column in columns)
        lines.append((f"{row.name:<{names}}" + "".join(f"{cell:>{width}}" for cell in cells)).rstrip())
    if more := [one.row.name for one in wrong if one.row not in rows]:
        lines.append(f"and {len(more)} more sub-blocks, the last one {more[-1]}")
    return "\n".join([*lines, LEGEND])


def _cell(row: SubBlock, reads: TermSet, wrong: WrongRow | None, column: int | None) -> str:
    if column is None:
        return ""
    if wrong is not None and (column in wrong.extra or column in wrong.missing):
        return "[x]" if column in wrong.extra else "[ ]"
    if column in row.terms:
        return "+ "
    if column in reads:
        return "x "
    return ". " if column < min(row.terms) else ""


def _columns(table: Table, rows: Sequence[SubBlock], marked: Mapping[str, WrongRow], room: int) -> list[int | None]:
    """Indices of terms, None for a gap: the wrong ones of the rows, then their neighbours, as many as there is room."""
    wrong = [
        index for row in rows if row.name in marked for index in (*marked[row.name].extra, *marked[row.name].missing)
    ]
    own = [index for row in rows for index in row.terms]
    nearest = sorted(range(len(table.terms)), key=lambda index: min(abs(index - one) for one in own))
    chosen: set[int] = set()
    for index in [*wrong, *own, *nearest]:
        if len(_with_gaps(sorted({*chosen, index}), len(table.terms))) <= max(room, 3):
            chosen.add(index)
    return _with_gaps(sorted(chosen), len(table.terms))


def _with_gaps(indices: Sequence[int], count: int) -> list[int | None]:
    columns: list[int | None] = []
    for last, index in pairwise([-1, *indices, count]):
        columns += [index] if index == last + 1 else [None, index]
    return columns[:-1]
