"""The demo's report: one page that needs nothing but itself.

Contract: `page` gives a complete HTML document: no script, no link to load, no picture from elsewhere. It shows every
sub-block of every case, every check, and what is needed to run it again.
"""

from __future__ import annotations

from farskip_compile.demo.results import Demo, bits, number
from farskip_compile.explain import layout, pages
from farskip_compile.explain.overlappable import independent
from farskip_compile.passes.residual.table import Table
from farskip_compile.profiling.html_page import PIECES


def page(demo: Demo) -> str:
    """The whole document."""
    values = {"demo": demo, "svg": pages, "layout": layout, "number": number, "bits": bits, "beside": _beside, **PIECES}
    return str(pages.render("demo.html.j2", **values))


def _beside(table: Table, row: str) -> str:
    """What can run beside the sub-block called `row`."""
    found = table.row(row)
    assert found is not None
    return ", ".join(independent(table, found)) or "nothing"
