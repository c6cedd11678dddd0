"""A connectivity table as a vector drawing, for the report page.

Contract: gives SVG elements for an HTML page; colours come from the page's style sheet by class, so that they follow
its light or dark theme; every cell of a table has a tooltip.
"""

from __future__ import annotations

from markupsafe import Markup

from farskip_compile.explain.layout import Cell, cells, shown_layers
from farskip_compile.explain.pages import CLASSES, render
from farskip_compile.report.compile import CompileReport

TOOLTIPS = {
    Cell.READ: "{row} reads {term}",
    Cell.LEFT_OUT: "{row} read {term} as written; the rewiring leaves it out",
    Cell.SKIPPED: "{row} does not read {term} in the model as written",
    Cell.OWN: "{row} adds {term}",
    Cell.LATER: "",
}


def connectivity(report: CompileReport) -> Markup:
    """The table of `report`; of a deep model only the layers that show every pattern."""
    shown = set(shown_layers(report).layers)
    hidden = {name for row in report.rows if row.layer not in shown for name in row.terms}
    columns = [index for index, name in enumerate(report.terms) if name not in hidden]
    lines = [(row.name, line) for row, line in zip(report.rows, cells(report), strict=True) if row.layer in shown]
    lines.append(("final norm", [Cell.READ] * len(report.terms)))

    def drawn(name: str, cell: Cell, term: str) -> tuple[str | None, str]:
        row = "the final norm" if name == "final norm" else name
        return CLASSES.get(cell), TOOLTIPS[cell].format(row=row, term=term)

    return render(
        "connectivity.svg.j2",
        columns=[report.terms[index] for index in columns],
        rows=[(name, [drawn(name, line[index], report.terms[index]) for index in columns]) for name, line in lines],
    )


def legend(report: CompileReport) -> Markup:
    """The meaning of the colours that occur."""
    present = {cell for line in cells(report) for cell in line}
    return render("legend.html.j2", cells=[(name, str(cell)) for cell, name in CLASSES.items() if cell in present])
