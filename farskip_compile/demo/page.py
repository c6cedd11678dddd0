"""The demo's report: one page that needs nothing but itself.

Contract: `page` gives a complete HTML document: no script, no link to load, no picture from elsewhere. It shows every
sub-block of every case, every check, and what is needed to run it again.
"""

from __future__ import annotations

from farskip_compile.demo.results import Demo, bits, number
from farskip_compile.explain import layout, svg
from farskip_compile.explain.overlappable import independent
from farskip_compile.explain.pages import render
from farskip_compile.profiling.html_page import PIECES
from farskip_compile.report.compile import CompileReport, RowReport


def page(demo: Demo) -> str:
    """The whole document."""
    return str(
        render("demo.html.j2", demo=demo, svg=svg, layout=layout, number=number, bits=bits, beside=_beside, **PIECES)
    )


def _beside(report: CompileReport, row: RowReport, after: bool) -> str:
    return ", ".join(independent(report, row, after=after)) or "nothing"
