"""HTML pages and drawings from the templates of this folder.

Contract: `render` fills a template and escapes every value that is not markup itself. What comes of `page.html.j2`
needs nothing from outside: system fonts, no images, no script; light and dark, desktop and phone, and print.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from farskip_compile.explain.layout import Cell
from farskip_compile.explain.palette import DARK, LIGHT

CLASSES = {Cell.READ: "read", Cell.LEFT_OUT: "left-out", Cell.SKIPPED: "skipped", Cell.OWN: "own"}
"""Class of each kind of cell; the style sheet fills the class `read` with the variable `--read`."""


def render(template: str, **values: Any) -> Markup:
    """The text of a template."""
    return Markup(_templates().get_template(template).render(values))


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for theme, colours in (("light", LIGHT), ("dark", DARK)):
        templates.globals[theme] = {name: colours[cell] for cell, name in CLASSES.items()}
    return templates
