# SPDX-License-Identifier: Apache-2.0
"""Text for people: the status of one model, and the status of the processes in a folder.

Contract: gives renderables for a `Terminal`, which escapes what others have written, of any width from 80 columns on;
they are understandable without colours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from farskip_compile.records.living import Life
from farskip_compile.records.process import Process
from farskip_compile.records.processes import FolderStatus, ranges_of, ranges_text
from farskip_compile.records.record import Answer, CompileRecord, ModelRecord
from farskip_compile.records.rows import in_words
from farskip_compile.text_utils import amount, shortened

if TYPE_CHECKING:
    from farskip_compile.tools.status.record import Status

STYLES = {Answer.REWIRED: "green", Answer.NOT_REWIRED: "bold red", Answer.UNKNOWN: "yellow"}
INDENT = 2
NAMED = 3
"""Hosts and parameters that are named; others are counted."""
SHOWN = 40
"""Groups of processes, models of one, and files that can't be read: so many are shown."""
LONGEST = 160
"""Characters of what others have written."""


def model_status(found: Status) -> RenderableType:
    """Draw the status of one model: the answer, and a table of facts."""
    grid = Grid.grid()
    grid.add_column(min_width=11)
    grid.add_column(overflow="fold")
    for label, text in _facts(found):
        grid.add_row(label, text)
    head = Text(found.answer, style=STYLES[found.answer]).append(f": {found.model}, {found.how}", style="default")
    return Group(head, Padding(grid, (0, 0, 0, INDENT), expand=False))


def _facts(found: Status) -> Iterator[tuple[str, str]]:
    if found.why:
        yield "why", found.why
    if found.reports:
        report = found.reports[-1]
        wiring = f"{report.wiring_before} -> {report.wiring_after}" if report.left_out else report.wiring_after
        yield "rows", f"{found.rows} in {amount(report.table.num_layers, 'layer')}: {wiring}"
        yield from (("", phrase) for phrase in in_words(report.table))
        expected = f"expected: {', '.join(map(str, found.overlap))}"
        yield "overlap", expected if found.overlap else f"none expected ({found.no_overlap})"
        yield "manifest", found.manifest
    if found.graphs:
        yield "graphs", ", ".join(f"{number} {outcome}" for outcome, number in found.graphs)
    yield from (("break", text) for text in found.graph_breaks)
    if found.outside and found.graphs:
        names = ", ".join(found.outside[:NAMED]) + (", ..." if len(found.outside) > NAMED else "")
        of = amount(found.parameters, "parameter")
        yield "outside", f"{len(found.outside)} of {of} in no graph that has run: {names}"
    if found.unseen and found.rewired:
        yield "unseen", f"calls past what is compiled, in {len(found.unseen)} ways (`unseen`)"


def folder_status(found: FolderStatus) -> RenderableType:
    """Draw processes in their order, those that are alike together, then what is wrong, then the answer."""
    alike: dict[tuple[Any, ...], list[Process]] = {}
    for one in found.processes:
        alike.setdefault(one.alike, []).append(one)
    parts: list[RenderableType] = []
    for members in list(alike.values())[:SHOWN]:
        parts.append(_head(members))
        parts += [Padding(Text(line), (0, 0, 0, INDENT), expand=False) for line in _lines(members)]
    if len(alike) > SHOWN:
        parts.append(Text(f"and {len(alike) - SHOWN} groups of processes more (--json has all)"))
    errors = [*found.problems, *(f"can't read {shortened(one, 2 * LONGEST)}" for one in found.unreadable)]
    parts += [Text(f"error: {text}", style="bold red") for text in errors[:SHOWN]]
    if len(errors) > SHOWN:
        parts.append(Text(f"and {len(errors) - SHOWN} errors more", style="bold red"))
    return Group(*parts, Text(_last(found), style="bold"))


def _head(members: Sequence[Process]) -> Text:
    first = members[0]
    ranks = ""
    if first.head.ranks > 1:
        ranks = f"{ranges_text(ranges_of(one.head.rank for one in members), SHOWN)} of {first.head.ranks}, "
    hosts = [shortened(one, 60) for one in dict.fromkeys(one.head.host for one in members)]
    where = ", ".join(hosts[:NAMED]) + (f" and {len(hosts) - NAMED} more" if len(hosts) > NAMED else "")
    named = f"process {first.head.pid}" if len(members) == 1 else f"{len(members)} processes"
    silent = [one.silent_seconds for one in members if one.silent_seconds is not None]
    life = f"{first.life} for {_duration(max(silent))}" if first.life is Life.SILENT and silent else str(first.life)
    text = Text(f"{ranks}{named} on {where}, {life}: ")
    return text.append(first.answer, STYLES[first.answer]) if first.is_alive else text.append(f"was {first.answer}")


def _lines(members: Sequence[Process]) -> Iterator[str]:
    first = members[0]
    if first.head.command:
        yield shortened(first.head.command, 60)
    for number, model in enumerate(first.models[:SHOWN]):
        yield from _model_lines(model, [process.models[number].shown for process in members])
    if len(first.models) > SHOWN:
        yield f"and {len(first.models) - SHOWN} models more"
    if others := sum(not one.is_of_model for one in first.compiled):
        yield f"{amount(others, 'other graph')}: of losses, or of layers"
    yield from (f"graph break: {_line(one.ended_by)}" for one in first.compiled[-SHOWN:] if one.ended_by)
    for failure in first.failures[-SHOWN:]:
        whose = f"{shortened(failure.model, LONGEST)}: " if failure.model else ""
        yield f"{whose}{shortened(failure.error, 60)}: {_line(failure.reason)}"


def _model_lines(model: ModelRecord, same: Sequence[CompileRecord]) -> Iterator[str]:
    one = model.shown
    yield f"{shortened(model.name, LONGEST) or 'a model'}: {_outcome(one)}"
    if one.rows_missing:
        yield f"  not as asked: {_line(', '.join(one.rows_missing))}"
    yield from (f"  {_line(phrase)}" for phrase in one.left_out[:SHOWN])
    if one.overlap:
        shares = ", ".join(phase.share for phase in one.overlap[:SHOWN])
        yield f"  expected overlap: {shares} ({shortened(one.overlap[0].profile, 60)})"
    yield f"  {_times(same)}; {one.manifest_text}"


def _outcome(one: CompileRecord) -> str:
    in_part = one.outcome.has_form and not one.is_complete
    outcome = "rewired in part" if in_part else str(one.outcome)
    rows = f", {amount(one.rows, 'row')}" if one.rows else ""
    if one.rows_asked:
        rows = f", {one.rows_rewired} of {amount(one.rows_asked, 'row')} asked for ({one.rows} in all)"
    return f"{outcome}{rows}{f': {_line(one.reason)}' if one.reason else ''}"


def _line(text: str) -> str:
    """Return the first line of what others have written."""
    return shortened(text.partition("\n")[0], LONGEST)


def _times(same: Sequence[CompileRecord]) -> str:
    """Return the times of one graph in processes that are alike."""
    if same[0].kind == "layers":
        return "compiled layer by layer"
    if same[0].ran is None:
        return "its steps are not watched"
    runs = _seconds([one.first_run_seconds for one in same])
    ran = f"first step {runs}" if runs else "has not run yet"
    return f"compiled in {_seconds([one.compile_seconds for one in same])}, {ran}"


def _seconds(values: Sequence[float | None]) -> str:
    """Return the least and the most."""
    known = [f"{one:.2g}" for one in sorted(one for one in values if one is not None)]
    if not known:
        return ""
    return f"{known[0]} s" if known[0] == known[-1] else f"{known[0]} to {known[-1]} s"


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            return amount(int(seconds // size), unit)
    return amount(int(seconds), "second")


def _last(found: FolderStatus) -> str:
    if not found.processes:
        return "No process has written anything there: none has compiled with farskip."
    earlier = f" {amount(found.earlier, 'file')} of earlier processes left out." if found.earlier else ""
    if not found.alive:
        return f"Nothing is known to run there.{earlier}"
    rewired = sum(one.answer is Answer.REWIRED for one in found.alive)
    return f"Rewired: {rewired} of {len(found.alive)}.{earlier}"
