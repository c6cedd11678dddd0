"""The overlap report as one HTML page: the timeline, and its numbers as tables.

Contract: `overlap_page` gives a complete document that needs nothing else: no script, no link, light and dark. `PIECES`
is what templates need that show a part of it (`profile.html.j2`).
"""

from __future__ import annotations

from typing import Any

from farskip_compile.explain.pages import render
from farskip_compile.profiling import text
from farskip_compile.profiling.report import Overlap, OverlapReport
from farskip_compile.profiling.timeline import timeline_svg

MOST_COLLECTIVES = 200


def overlap_page(report: OverlapReport) -> str:
    """The whole document."""
    collectives = [(rank, one) for rank in report.ranks for one in rank.collectives]
    return str(render("overlap.html.j2", report=report, collectives=collectives, most=MOST_COLLECTIVES, **PIECES))


def _times(share: Overlap) -> list[str | tuple[str, str]]:
    """Cells of what is in flight, exposed (with its colour) and hidden."""
    exposed = ("number bad" if share.exposed_ns else "number good", text.time_text(share.exposed_ns))
    return [text.time_text(share.communication_ns), exposed, text.percent(share)]


def _known(time_ns: int | None) -> str:
    return "\N{EN DASH}" if time_ns is None else text.time_text(time_ns)


PIECES: dict[str, Any] = {"text": text, "times": _times, "known": _known, "timeline_svg": timeline_svg}
