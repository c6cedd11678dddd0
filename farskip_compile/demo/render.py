# SPDX-License-Identifier: Apache-2.0
"""The demo on the terminal and as one HTML page: what was rewired in each case, and how it compares with the oracle.

Contract: takes the records of a demo, draws nothing that is not in them. Text for rich is readable at 80 columns. The
page is a complete document: no script, no link to load, no picture from elsewhere. It shows every sub-block of every
case, every check, and what is needed to run it again.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from farskip_compile.demo.results import Check, Demo, DemoCase, DemoComparison, bits, number
from farskip_compile.measure.profiling.page import template_context
from farskip_compile.measure.profiling.text import percent, time_text
from farskip_compile.passes.residual.table import Table as Wiring
from farskip_compile.tools.explain import layout, pages, text
from farskip_compile.tools.explain.overlappable import independent

STYLES = {True: "bold green", False: "bold red"}


def case_lines(case: DemoCase | DemoComparison, console: Console) -> RenderableType:
    """One case: what it is, what was rewired, the connectivity table, the checks. Or the variants side by side."""
    if isinstance(case, DemoComparison):
        return _comparison(case)
    ranks = f" ({case.ranks} ranks)" if case.ranks > 1 else ""
    parts: list[RenderableType] = [Text(f"\n{case.title}{ranks}", style="bold"), Text(case.about)]
    if case.problem:
        parts.append(Text(case.problem, style="yellow" if case.skipped else "red"))
    if case.report is not None:
        parts.append(Text(case.report.summary()))
        if case.report.rows:
            parts.append(text.connectivity(case.report.table, layout.shown_layers(case.report.table), console))
    if case.checks:
        parts.append(_checks(case.checks))
    return Group(*parts)


def closing(demo: Demo, report: Path) -> RenderableType:
    """The verdict, and where the report is."""
    verdict = Text(f"\n{'PASS' if demo.passed else 'FAIL'}: ", style=STYLES[demo.passed])
    verdict.append(f"{demo.verdict}, {demo.seconds:.0f} s", style="default")
    lines = [verdict, Text(f"report: {report}")]
    if demo.overlap is not None and demo.overlap.variants:
        lines.append(Text("traces of both ranks, each for `farskip overlap` and for ui.perfetto.dev:"))
        lines += [Text(f"  {report.parent / variant.trace_name}") for variant in demo.overlap.variants]
    return Group(*lines)


def _comparison(found: DemoComparison) -> RenderableType:
    parts: list[RenderableType] = [Text(f"\n{found.title} ({found.ranks} ranks)", style="bold"), Text(found.about)]
    if found.problem:
        return Group(*parts, Text(found.problem, style="yellow" if found.skipped else "red"))
    table = Table(Column("variant", no_wrap=True), box=None, padding=(0, 2, 0, 0))
    for heading in ("in flight", "exposed", "hidden", "predicted", "vs eager"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for variant in found.variants:
        predicted = variant.predicted_exposed_ns
        table.add_row(
            variant.name,
            time_text(variant.communication_ns),
            time_text(variant.exposed_ns),
            percent(variant.report.total),
            "-" if predicted is None else time_text(predicted),
            f"{variant.difference:.1e}",
            Text("pass" if variant.passed else "FAIL", style=STYLES[variant.passed]),
        )
    meaning = "predicted: exposed time by the scheduler's cost model; vs eager: the same wiring, not compiled"
    notes = [Text(note, style="yellow") for note in (found.note, found.why_apart) if note]
    return Group(*parts, table, Text(meaning, style="dim"), *notes)


def _checks(checks: tuple[Check, ...]) -> Table:
    headings = ("phase", "inner", "outputs", "gradients", "vs plain", "")
    title = "against the hand-written FarSkip form"
    table = Table(*headings, box=None, padding=(0, 2, 0, 0), title=title, title_justify="left")
    for check in checks:
        table.add_row(
            check.phase,
            f"{check.inner} {check.dtype}",
            _difference(check.outputs_equal, check.output_difference),
            _difference(check.gradients_equal, check.gradient_difference),
            f"{check.plain_difference:.1e}",
            Text("pass" if check.passed else "FAIL", style=STYLES[check.passed]),
        )
    return table


def _difference(equal: bool | None, difference: float | None) -> str:
    if difference is None:
        return "-"
    return "bit-equal" if equal else f"max diff {difference:.1e}"


def page(demo: Demo) -> str:
    """The whole document."""
    helpers = {"svg": pages, "layout": layout, "number": number, "bits": bits, "beside": _beside, **template_context()}
    return str(pages.render("demo.html.j2", demo=demo, **helpers))


def _beside(table: Wiring, row: str) -> str:
    """What can run beside the sub-block called `row`."""
    found = table.row(row)
    assert found is not None
    return ", ".join(independent(table, found)) or "nothing"
