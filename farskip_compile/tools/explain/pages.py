# SPDX-License-Identifier: Apache-2.0
"""HTML pages and drawings from the templates of this folder; connectivity tables as vector drawings for them.

Contract: `render` fills a template and escapes every value that is not markup itself, control characters too. What
comes of `page.html.j2` needs nothing from outside: system fonts, no images, no script; light and dark, desktop and
phone, and print. Colours of drawings come from its style sheet by class, so that they follow the theme; every cell of a
table has a tooltip.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from farskip_compile.passes.residual.table import Table
from farskip_compile.text_utils import printable
from farskip_compile.tools.explain.layout import DARK, LIGHT, Cell, cells, present, shown_layers

CLASSES = {Cell.READ: "read", Cell.LEFT_OUT: "left-out", Cell.SKIPPED: "skipped", Cell.OWN: "own"}
"""Class of each kind of cell; the style sheet fills the class `read` with the variable `--read`."""
TOOLTIPS = {
    Cell.READ: "{row} reads {term}",
    Cell.LEFT_OUT: "{row} read {term} as written; the rewiring leaves it out",
    Cell.SKIPPED: "{row} does not read {term} in the model as written",
    Cell.OWN: "{row} adds {term}",
    Cell.LATER: "",
}


def render(template: str, **values: Any) -> Markup:
    """The text of a template."""
    return Markup(_templates().get_template(template).render(values))


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        finalize=_finished,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for theme, colours in (("light", LIGHT), ("dark", DARK)):
        templates.globals[theme] = {name: colours[cell] for cell, name in CLASSES.items()}
    return templates


def _finished(value: Any) -> Any:
    """A value that a template shows, without what a page may not hold: control characters, halves of characters."""
    return printable(value, lines=True) if isinstance(value, str) and not isinstance(value, Markup) else value


def connectivity(table: Table) -> Markup:
    """`table`, drawn; of a deep model only the layers that show every pattern."""
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
    return render("legend.html.j2", cells=[(CLASSES[cell], str(cell)) for cell in present(table)])
