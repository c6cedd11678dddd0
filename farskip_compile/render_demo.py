"""The demo on the terminal: what was rewired in each case, and how it compares with the oracle.

Contract: takes the records of a demo, gives text for rich; readable at 80 columns; draws nothing that is not in them.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from farskip_compile import render_text
from farskip_compile.demo_results import Case, Check, Demo
from farskip_compile.layout import shown_layers

STYLES = {True: "bold green", False: "bold red"}


def case_lines(case: Case, console: Console) -> RenderableType:
    """One case: what it is, what was rewired, the connectivity table, the checks."""
    ranks = f" ({case.ranks} ranks)" if case.ranks > 1 else ""
    parts: list[RenderableType] = [Text(f"\n{case.title}{ranks}", style="bold"), Text(case.about)]
    if case.problem:
        parts.append(Text(case.problem, style="yellow" if case.skipped else "red"))
    if case.report is not None:
        parts.append(Text(case.report.summary()))
        if case.report.rows:
            parts.append(render_text.connectivity(case.report, shown_layers(case.report), console))
    if case.checks:
        parts.append(_checks(case.checks))
    return Group(*parts)


def closing(demo: Demo, report: Path) -> RenderableType:
    """The verdict, and where the report is."""
    verdict = Text(f"\n{'PASS' if demo.passed else 'FAIL'}: ", style=STYLES[demo.passed])
    verdict.append(f"{demo.verdict()}, {demo.seconds:.0f} s", style="default")
    return Group(verdict, Text(f"report: {report}"))


def _checks(checks: tuple[Check, ...]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), title="against the hand-written FarSkip form", title_justify="left")
    for heading in ("phase", "inner", "outputs", "gradients", "vs plain", ""):
        table.add_column(heading)
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
