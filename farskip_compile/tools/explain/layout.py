# SPDX-License-Identifier: Apache-2.0
"""How a connectivity table is laid out for a reader, whatever it is drawn with: text, picture or page.

Contract: takes a `Table`, gives plain data; draws nothing.

A layer is left out of a drawing only if it is like the layer before it, or if the same change from one layer to the
next has been shown already. Alike means: same sub-blocks, same evidence, same collectives, and the same terms left
out, counted from the layer itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path

from farskip_compile.passes.residual.table import SubBlock, Table
from farskip_compile.passes.residual.termset import TermSet

MOST_SHOWN = 12
SMALLEST_GAP = 3
HEAD, TAIL = 6, 3


class Cell(StrEnum):
    """What a cell of the table shows; the value is its legend."""

    READ = "read"
    LEFT_OUT = "left out by the rewiring"
    SKIPPED = "not read in the model as written"
    OWN = "what the sub-block adds"
    LATER = "does not exist yet"


LIGHT = {
    Cell.READ: "#9db8d9",
    Cell.LEFT_OUT: "#d9480f",
    Cell.SKIPPED: "#e5dbff",
    Cell.OWN: "#dfe3e8",
    Cell.LATER: "#ffffff",
}
"""Colours of the cells, in the picture and on the page: read and left out differ in lightness as well as in hue, so
that the table survives colour blindness and a black-and-white printer."""
DARK = {
    Cell.READ: "#3f6396",
    Cell.LEFT_OUT: "#ff9248",
    Cell.SKIPPED: "#4a3f6b",
    Cell.OWN: "#343a44",
    Cell.LATER: "#15181d",
}


def cells(table: Table) -> list[list[Cell]]:
    """One list for each row of `table`, one cell for each term."""
    return [_row_cells(table, row) for row in table.rows]


def present(table: Table) -> list[Cell]:
    """The cells that occur, of those that show anything: what a legend explains."""
    drawn = {cell for line in cells(table) for cell in line}
    return [cell for cell in Cell if cell in drawn - {Cell.LATER}]


def _row_cells(table: Table, row: SubBlock) -> list[Cell]:
    line = [Cell.LATER] * len(table.terms)
    skipped = table.skipped(row)
    for cell, terms in ((Cell.SKIPPED, skipped), (Cell.READ, row.reads), (Cell.LEFT_OUT, row.left_out)):
        for index in terms:
            line[index] = cell
    for index in row.terms:
        line[index] = Cell.OWN
    return line


def reads_text(table: Table, terms: TermSet, most: int = 3) -> str:
    """A set of terms in a few characters: `e..s2 without r1`, at any depth."""
    if len(terms) <= 2:
        return ", ".join(table.names(terms)) or "nothing"
    span = TermSet(((terms.intervals[0][0], terms.intervals[-1][1]),))
    if len(missing := table.names(span - terms)) <= most:
        return table.text(span) + (f" without {', '.join(missing)}" if missing else "")
    parts = table.text(terms).split(", ")
    return ", ".join(parts) if len(parts) <= most else f"{', '.join(parts[:most])}, ... ({len(terms)} terms)"


def counted(names: Iterable[str]) -> str:
    """Repeated names once, with their number: `all_to_all_single x2`."""
    return ", ".join(name if count == 1 else f"{name} x{count}" for name, count in Counter(names).items())


@dataclass(frozen=True)
class Shown:
    """The layers of a drawing."""

    layers: tuple[int, ...]
    repeats: bool = True
    """Whether every layer that is left out repeats a pattern that is shown."""

    def gap_after(self, layer: int) -> tuple[int, int] | None:
        """First and last of the layers left out after `layer`, which is shown."""
        following = [other for other in self.layers if other > layer]
        return (layer + 1, following[0] - 1) if following and following[0] > layer + 1 else None

    def gap_text(self, gap: tuple[int, int]) -> str:
        """A note for the place of a gap."""
        return f"layers {gap[0]} to {gap[1]} {'alike' if self.repeats else 'not shown'}"


def shown_layers(table: Table, *, everything: bool = False) -> Shown:
    """Layers that a short drawing shows: each pattern where it first occurs, each change, and the last layer."""
    layers = table.num_layers
    if everything:
        return Shown(tuple(range(layers)))
    patterns = [_pattern(table, layer) for layer in range(layers)]
    seen: set[tuple[object, object]] = set()
    shown = []
    for layer, pattern in enumerate(patterns):
        change = (patterns[layer - 1] if layer else None, pattern)
        if layer in (0, layers - 1) or (change not in seen and change[0] != change[1]):
            shown.append(layer)
        seen.add(change)
    repeats = len(shown) <= MOST_SHOWN
    if not repeats:
        shown = [*range(HEAD), *range(layers - TAIL, layers)]
    small_gaps = {layer for low, high in pairwise(shown) if high - low <= SMALLEST_GAP for layer in range(low, high)}
    return Shown(tuple(sorted({*shown, *small_gaps})), repeats)


def short_place(place: str) -> str:
    """`file:line`, relative to the working directory, to site-packages or to where this package lies."""
    roots = [re.escape(f"{root}/") for root in (Path.cwd(), Path(__file__).resolve().parents[2])]
    for root in (*roots, r"\S*/site-packages/"):
        place = re.sub(rf"(^|(?<=at )){root}", "", place)
    return place


def layer_of_term(name: str) -> int | None:
    """The layer in the name of a term (`r12` or `m3.1`); None for the embedding."""
    match = re.match(r"[a-z](\d+)", name)
    return int(match[1]) if match else None


def _pattern(table: Table, layer: int) -> tuple[object, ...]:
    def relative(terms: Iterable[int]) -> tuple[str, ...]:
        return tuple(_relative(name, layer) for name in table.names(terms))

    return tuple(
        (
            row.kind,
            table.evidence(row),
            table.collectives(row),
            relative(row.terms),
            relative(row.left_out),
            relative(table.skipped(row)),
        )
        for row in table.rows_of(layer)
    )


def _relative(name: str, layer: int) -> str:
    of = layer_of_term(name)
    return name if of is None else re.sub(r"\d+", str(of - layer), name, count=1)
