"""A connectivity table as a vector drawing, for the report page.

Contract: gives SVG elements for an HTML page; colours come from the page's style sheet by class, so that they follow
its light or dark theme; every cell of a table has a tooltip.
"""

from __future__ import annotations

from markupsafe import Markup

from farskip_compile.explain.layout import Cell, cells, shown_layers
from farskip_compile.explain.pages import CLASSES, render
from farskip_compile.passes.residual.table import Table

TOOLTIPS = {
    Cell.READ: "{row} reads {term}",
    Cell.LEFT_OUT: "{row} read {term} as written; the rewiring leaves it out",
    Cell.SKIPPED: "{row} does not read {term} in the model as written",
    Cell.OWN: "{row} adds {term}",
    Cell.LATER: "",
}


def connectivity(table: Table) -> Markup:
    """`table`; of a deep model only the layers that show every pattern."""
    shown = set(shown_layers(table).layers)
    hidden = {index for row in table.rows if row.layer not in shown for index in row.terms}
    columns = [index for index in range(len(table.terms)) if index not in hidden]
    lines = [(row.name, line) for row, line in zip(table.rows, cells(table), strict=True) if row.layer in shown]
    lines.append(("final norm", [Cell.READ] * len(table.terms)))

    def drawn(name: str, cell: Cell, term: str) -> tuple[str | None, str]:
        row = "the final norm" if name == "final norm" else name
        return CLASSES.get(cell), TOOLTIPS[cell].format(row=row, term=term)

    return render(
        "connectivity.svg.j2",
        columns=table.names(columns),
        rows=[(name, [drawn(name, line[index], table.terms[index].name) for index in columns]) for name, line in lines],
    )


def legend(table: Table) -> Markup:
    """The meaning of the colours that occur."""
    present = {cell for line in cells(table) for cell in line}
    return render("legend.html.j2", cells=[(name, str(cell)) for cell, name in CLASSES.items() if cell in present])
