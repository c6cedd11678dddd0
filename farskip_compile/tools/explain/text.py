# SPDX-License-Identifier: Apache-2.0
"""A connectivity table in a terminal.

Contract: gives renderables for a `rich` console of any width from 80 columns on, understandable without colours, and
in ASCII where the terminal has nothing else. Deep models show the layers that `layout.shown_layers` picks.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.measure import Measurement
from rich.panel import Panel
from rich.table import Table as Grid
from rich.text import Text

from farskip_compile.compiler.config import FarSkipConfig
from farskip_compile.errors import FarSkipError
from farskip_compile.passes.residual.table import SubBlock, Table
from farskip_compile.records.compile import CompileReport
from farskip_compile.text_utils import printable
from farskip_compile.tools.explain.layout import (
    Cell,
    Shown,
    cells,
    counted,
    layer_of_term,
    present,
    reads_text,
    short_place,
    shown_layers,
)
from farskip_compile.tools.explain.overlappable import independent
from farskip_compile.tools.explain.refusal import RefusedModel

STYLES = {
    Cell.READ: "blue",
    Cell.LEFT_OUT: "bold yellow",
    Cell.SKIPPED: "magenta",
    Cell.OWN: "dim",
    Cell.LATER: "",
}
SYMBOLS = {Cell.READ: "●", Cell.LEFT_OUT: "○", Cell.SKIPPED: "◌", Cell.OWN: "+", Cell.LATER: " "}
ASCII = {Cell.READ: "x", Cell.LEFT_OUT: "O", Cell.SKIPPED: "-", Cell.OWN: "+", Cell.LATER: " "}
INDENT = 2


class Explained(Protocol):
    """An `Explanation`."""

    @property
    def model(self) -> str:
        """Its name."""
        ...

    @property
    def config(self) -> FarSkipConfig:
        """What was asked."""
        ...

    @property
    def report(self) -> CompileReport | None:
        """What was found."""
        ...

    @property
    def refusal(self) -> RefusedModel | None:
        """Why not."""
        ...


def plain(render: Callable[[Console], RenderableType], width: int = 80) -> str:
    """What `render` gives for a console without colours, as text; lines end where they have something in them."""
    console = Console(file=io.StringIO(), width=width, color_system=None, markup=False, emoji=False, highlight=False)
    with console.capture() as captured:
        console.print(render(console))
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n")


def explanation(found: Explained, console: Console, *, everything: bool = False) -> RenderableType:
    """All of an `Explanation`: sub-blocks, refusal, connectivity, what can run beside what."""
    parts: list[RenderableType] = [Text(printable(heading(found), lines=True), style="bold")]
    if found.report is not None and found.report.rows:
        table = found.report.table
        shown = shown_layers(table, everything=everything)
        parts += [Text(), sub_blocks(table, shown, console.width)]
        if found.refusal is not None:
            parts += [refusal(found.refusal), Text()]
        parts += [connectivity(table, shown, console), Text()]
        if found.refusal is None:
            parts.append(beside(table, shown))
    elif found.refusal is not None:
        parts += [Text(), refusal(found.refusal)]
    return Group(*parts)


def heading(found: Explained) -> str:
    """Two lines: what was asked for and what came out."""
    asked = found.config.connectivity if isinstance(found.config.connectivity, str) else "a table"
    where = f", layers {found.config.layers[0]} to {found.config.layers[1]}" if found.config.layers else ""
    if found.refusal is not None:
        kept = " The model as it is:" if found.report is not None and found.report.rows else ""
        return f"{found.model}, connectivity {asked}{where}\nrefused.{kept}"
    assert found.report is not None
    return f"{found.model}, connectivity {asked}{where}\n{found.report.summary()}"


def refusal(reason: RefusedModel) -> Panel:
    """Why not, where, and the way out."""
    body = Text(printable(reason.reason, lines=True))
    for label, text in (("where", short_place(reason.where)), ("way out", reason.way_out)):
        if text:
            body.append(f"\n{label + ':':9}", style="bold").append(printable(text, lines=True))
    return Panel(body, title=Text(reason.error), title_align="left", border_style="red", box=box.ROUNDED)


def error(problem: FarSkipError) -> Panel:
    """An error of this package, without a traceback."""
    return refusal(RefusedModel(type(problem).__name__, problem.reason, str(problem.where), problem.way_out))


def sub_blocks(table: Table, shown: Shown, width: int) -> Grid:
    """One row for each sub-block: what it is, why, and what it reads. Wide consoles show more columns."""
    changed = any(row.left_out for row in table.rows)
    communicates = any(table.collectives(row) for row in table.rows)
    wide, very_wide = width >= 100, width >= 116
    grid = _grid()
    grid.add_column("layer", justify="right", style="dim", min_width=len("layer"))
    grid.add_column("sub-block", min_width=max(len(row.name) for row in table.rows))
    columns = [("kind", wide), ("evidence", True), ("reads", True), ("after rewiring", changed)]
    columns += [("collectives", communicates), ("where", very_wide)]
    for name, is_there in columns:
        if is_there:
            grid.add_column(name, style="dim" if name == "where" else "", overflow="fold")
    last_evidence: dict[str, str] = {}
    for row in _visible(table, shown):
        if isinstance(row, str):
            note = {"evidence": Text(row, style="dim")}
            grid.add_row("", "...", *[note.get(name, "") for name, is_there in columns if is_there])
            continue
        evidence, after = table.evidence(row), reads_text(table, row.reads)
        repeated = last_evidence.get(row.kind) == evidence
        last_evidence[row.kind] = evidence
        content: dict[str, RenderableType] = {
            "kind": str(row.kind),
            "evidence": Text("same", style="dim") if repeated else evidence,
            "reads": reads_text(table, row.reads_as_written),
            "after rewiring": Text(after, "bold yellow") if row.left_out else Text("unchanged", "dim"),
            "collectives": counted(table.collectives(row)),
            "where": PlaceText(short_place(table.where(row))),
        }
        grid.add_row(str(row.layer), row.name, *[content[name] for name, is_there in columns if is_there])
    return grid


class PlaceText:
    """`file:line`, broken after slashes where a column is narrow."""

    def __init__(self, place: str) -> None:
        self.parts = [Text(part) for part in re.findall(r"[^/]*/|[^/]+", printable(place))]

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        sizes = [part.cell_len for part in self.parts] or [0]
        return Measurement(max(sizes), sum(sizes)).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        line = Text(overflow="fold")
        for part in self.parts:
            if line.cell_len and line.cell_len + part.cell_len > options.max_width:
                yield line
                line = Text(overflow="fold")
            line.append_text(part)
        yield line


def _visible(table: Table, shown: Shown) -> Iterator[SubBlock | str]:
    """The rows of the shown layers, with a note where layers are left out."""
    last: int | None = None
    for row in table.rows:
        if row.layer not in shown.layers:
            continue
        gap = shown.gap_after(last) if last is not None and row.layer != last else None
        if gap is not None:
            yield shown.gap_text(gap)
        last = row.layer
        yield row


def connectivity(table: Table, shown: Shown, console: Console) -> Text:
    """The table itself: rows are sub-blocks, columns are the terms of the residual sum."""
    symbols = SYMBOLS if _speaks_unicode(console) else ASCII
    dots = "…" if _speaks_unicode(console) else ".."
    columns = _columns(table, shown, dots)
    width = 1 + max(len(label) for label, _ in columns)
    names = max(len("sub-block"), *(len(row.name) for row in table.rows), len("final norm"))
    room = max(1, (console.width - INDENT - names - 1) // width)
    text = Text("Who reads what", style="bold")
    text.append("  (columns: the terms of the residual sum)\n", style="not bold dim")
    for start in range(0, len(columns), room):
        _append_block(text, table, shown, columns[start : start + room], names, width, symbols, dots)
        text.append("\n")
    return _append_legend(text, table, symbols, console.width)


def _columns(table: Table, shown: Shown, dots: str) -> list[tuple[str, int | None]]:
    """Label and term index of each column; the index is None where layers are left out."""
    columns: list[tuple[str, int | None]] = []
    last: int | None = None
    for term in table.terms:
        layer = layer_of_term(term.name)
        if layer is not None and layer not in shown.layers:
            continue
        if last is not None and layer is not None and layer != last and shown.gap_after(last) is not None:
            columns.append((dots, None))
        last = layer if layer is not None else last
        columns.append((term.name, term.index))
    return columns


def _append_block(
    text: Text,
    table: Table,
    shown: Shown,
    columns: Sequence[tuple[str, int | None]],
    names: int,
    width: int,
    symbols: dict[Cell, str],
    dots: str,
) -> None:
    margin = " " * INDENT
    text.append(f"{margin}{'sub-block':<{names}} " + "".join(f"{label:>{width}}" for label, _ in columns) + "\n", "dim")
    by_name = {row.name: row_cells for row, row_cells in zip(table.rows, cells(table), strict=True)}
    for row in _visible(table, shown):
        if isinstance(row, str):
            text.append(f"{margin}{dots:<{names}}  {row}\n", style="dim")
            continue
        line = by_name[row.name]
        if all(line[index] is Cell.LATER for _, index in columns if index is not None):
            continue
        text.append(f"{margin}{row.name:<{names}} ")
        for position, (label, index) in enumerate(columns):
            if index is not None:
                text.append(f"{symbols[line[index]]:>{width}}", style=STYLES[line[index]])
            else:
                before = columns[position - 1][1] if position else None
                open_ended = before is not None and line[before] is not Cell.LATER
                text.append(f"{label if open_ended else '':>{width}}", style="dim")
        text.append("\n")
    text.append(f"{margin}{'final norm':<{names}} ", style="dim")
    for label, index in columns:
        symbol = label if index is None else symbols[Cell.READ]
        text.append(f"{symbol:>{width}}", style="dim" if index is None else STYLES[Cell.READ])
    text.append("\n")


def _append_legend(text: Text, table: Table, symbols: dict[Cell, str], width: int) -> Text:
    used = INDENT
    text.append(" " * INDENT)
    for cell in present(table):
        length = len(symbols[cell]) + 1 + len(cell) + 3
        if used > INDENT and used + length > width:
            text.append("\n" + " " * INDENT)
            used = INDENT
        text.append(symbols[cell], style=STYLES[cell]).append(f" {cell}   ")
        used += length
    text.rstrip()
    kinds = "e embedding, a attention or mixer, m dense, s shared, r routed; number: layer"
    return text.append("\n" + " " * INDENT).append(kinds, style="dim")


def beside(table: Table, shown: Shown) -> Grid:
    """What can be computed while a sub-block's communication is under way."""
    written, grid = table.as_written(), _grid("What can run beside the communication of a sub-block")
    grid.add_column("sub-block", min_width=max(len(row.name) for row in table.rows))
    for name in ("collectives in this graph", "as written", "rewired"):
        grid.add_column(name, overflow="fold")
    for row in _visible(table, shown):
        if isinstance(row, str):
            grid.add_row("...", Text(row, style="dim"), "", "")
            continue
        number = table.rows.index(row)
        before, after = (", ".join(independent(one, one.rows[number])) or "-" for one in (written, table))
        collectives = counted(table.collectives(row)) or Text("none", style="dim")
        grid.add_row(row.name, collectives, before, Text(after, "bold green" if before != after else ""))
    return grid


def _grid(title: str | None = None) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=title, title_justify="left")
    grid.title_style = "bold"
    return grid


def _speaks_unicode(console: Console) -> bool:
    return "utf" in (console.encoding or "").lower()
