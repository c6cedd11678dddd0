# SPDX-License-Identifier: Apache-2.0
"""The overlap report as one HTML page: a timeline, and its numbers as tables.

In:    an `OverlapReport`; for a timeline alone also a `Trace` to report on.
Out:   `overlap_page`: a complete document without scripts or links, for light and dark ground. `timeline_svg`: for each
       rank a lane of compute, and lanes of collectives with exposed parts marked, as one SVG element with its own
       style, which stands alone or in a page. It is at least 36 rem wide: let the element around it scroll.
Never: draws more shapes than the picture has room for: segments narrower than a pixel or two are drawn together.

Exposed parts differ from hidden ones in lightness as well as in hue.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape as escaped
from itertools import accumulate
from typing import Any

from markupsafe import Markup

from farskip_compile.measure.profiling import text
from farskip_compile.measure.profiling.data import (
    Collective,
    CollectiveReport,
    MeasuredOverlap,
    OverlapReport,
    RankReport,
    Trace,
)
from farskip_compile.measure.profiling.intervals import Coverage, Segment, Span, blocks, difference, union
from farskip_compile.measure.profiling.measure import overlap
from farskip_compile.measure.profiling.text import percent, short_name, time_text
from farskip_compile.text_utils import printable
from farskip_compile.tools.explain.pages import render

NAMES, RIGHT = 132, 12
ROW, GAP, RANK_GAP, AXIS = 20, 4, 14, 30
SLIVER = 2.0
"""Pixels below which a segment has no shape of its own."""
LETTER = 6.6
MOST_RANKS, MOST_COLLECTIVES, MOST_ROWS = 8, 200, 32


def overlap_page(report: OverlapReport) -> str:
    """Return `report` as an HTML document of its own, with a timeline."""
    collectives = [(rank, one) for rank in report.ranks for one in rank.collectives]
    return str(
        render("overlap.html.j2", report=report, collectives=collectives, most=MOST_COLLECTIVES, **template_context())
    )


def template_context() -> dict[str, Any]:
    """Return the names that templates need to show a part of a report (`profile.html.j2`)."""
    return {"text": text, "times": _times, "known": _known, "timeline_svg": timeline_svg}


def _times(share: MeasuredOverlap) -> list[str | tuple[str, str]]:
    """Return the cells of the time in flight, the exposed time (with its colour) and the hidden part."""
    exposed = ("number bad" if share.exposed_ns else "number good", time_text(share.exposed_ns))
    return [time_text(share.communication_ns), exposed, percent(share)]


def _known(time_ns: int | None) -> str:
    return "\N{EN DASH}" if time_ns is None else time_text(time_ns)


def escape(text: str) -> str:
    """Return `text` for an element or an attribute, without characters that a page may not hold."""
    return escaped(printable(text))


_Flight = tuple[Collective, CollectiveReport]
"""One collective, and its report."""


@dataclass(frozen=True)
class _Canvas:
    """The map from nanoseconds to pixels, and shapes drawn by it."""

    origin: int
    per_ns: float
    right: float

    @property
    def sliver(self) -> float:
        """The shortest time that has a shape of its own."""
        return SLIVER / self.per_ns

    def x(self, time: float) -> float:
        """Return the horizontal place of a moment."""
        return NAMES + (time - self.origin) * self.per_ns

    def box(self, style: str, start: int, end: int, y: float, tip: str = "", *, gap: float = 0.0) -> str:
        """Return a rectangle; empty if no part of it lies within the picture."""
        x, right = self.x(start), min(self.x(end), self.right)
        if right <= x:
            return ""
        place = f'x="{x:.2f}" y="{y:g}" width="{max(0.3, right - x - gap):.2f}" height="{ROW - 2}"'
        return f'<rect class="{style}" {place}>' + (f"<title>{escape(tip)}</title></rect>" if tip else "</rect>")

    def label(self, style: str, span: Span, y: float, text: str) -> str:
        """Return text inside a rectangle; empty if there is no room for it."""
        x, right = self.x(span[0]), min(self.x(span[1]), self.right)
        if right - x <= LETTER * len(text) + 6:
            return ""
        return f'<text class="{style}" x="{x + 4:.2f}" y="{y + 13:g}">{escape(text)}</text>'


def timeline_svg(
    shown: OverlapReport | Trace,
    *,
    width: int = 960,
    duration_ns: int | None = None,
    title: str = "",
    ranks: Sequence[int] | None = None,
) -> str:
    """Return a drawing of a report as an SVG element.

    Args:
        shown: the report, or a trace to report on.
        width: of the picture, in pixels.
        duration_ns: the time that the width stands for, so that several timelines have one scale; by default the whole
            of the trace.
        title: a line above the lanes.
        ranks: the ranks to draw; by default the first eight.

    Raises:
        NoCollectivesError: `shown` is a trace without collectives.
    """
    report = overlap(shown) if isinstance(shown, Trace) else shown
    wanted = [rank.rank for rank in report.ranks][:MOST_RANKS] if ranks is None else list(ranks)
    chosen = [pair for pair in zip(report.ranks, report.traces, strict=True) if pair[0].rank in wanted]
    spans = [trace.span for _, trace in chosen if trace.span is not None] or [(0, 1)]
    origin = min(start for start, _ in spans)
    duration = max(1, duration_ns or max(end for _, end in spans) - origin)
    canvas = _Canvas(origin, (width - NAMES - RIGHT) / duration, width - RIGHT)
    y = 24.0 if title else 6.0
    parts = [f'<text class="tl-rank" x="0" y="14">{escape(title)}</text>'] if title else []
    top = y
    for rank, trace in chosen:
        drawn, y = _rank(rank, trace, canvas, y)
        parts += drawn
    parts[1 if title else 0 : 0] = _axis(duration, canvas, top, y, width)  # the grid lies under the lanes
    label = f"Timeline of {len(chosen)} ranks: {percent(report.total)} of communication hidden"
    shapes = Markup("".join(parts))
    return str(render("timeline.svg.j2", width=width, height=f"{y + AXIS:g}", label=label, shapes=shapes))


def _rank(rank: RankReport, trace: Trace, canvas: _Canvas, y: float) -> tuple[list[str], float]:
    segments = sorted((segment for lane in trace.lanes() for segment in lane), key=lambda segment: segment[:2])
    parts = [
        f'<text class="tl-rank" x="0" y="{y + 14:g}">rank {rank.rank}</text>',
        f'<text class="tl-soft" x="{NAMES - 10}" y="{y + 14:g}" text-anchor="end">compute</text>',
        *_compute(segments, canvas, y),
    ]
    y += ROW + GAP
    by_lane: dict[str, list[_Flight]] = {}
    flights = list(zip(trace.collectives, rank.collectives, strict=True))
    for one, found in flights:
        by_lane.setdefault(one.lane, []).append((one, found))
    counted = union((one.end - found.communication_ns, one.end) for one, found in flights)
    exposed = Coverage(difference(counted, trace.compute()))
    for number, (lane, mine) in enumerate(by_lane.items()):
        parts.append(f'<text class="tl-soft" x="{NAMES - 10}" y="{y + 14:g}" text-anchor="end">{escape(lane)}</text>')
        if number == 0:
            parts.append(f'<text class="tl-soft" x="0" y="{y + 14:g}">{percent(rank)} hidden</text>')
        for row in _rows(mine):
            parts += _flights(row, exposed, canvas, y)
            y += ROW
        y += GAP
    return parts, y + RANK_GAP


def _compute(segments: Sequence[Segment], canvas: _Canvas, y: float) -> Iterator[str]:
    """Yield the shapes of compute: wide segments one by one, narrow ones in blocks."""
    for block in blocks([(start, end) for start, end, _ in segments], canvas.sliver):
        name = segments[block.first][2]
        many = f"{block.count} operators, {time_text(block.busy)} in {time_text(block.end - block.start)}"
        tip = f"{name}, {time_text(block.busy)}" if block.count == 1 else many
        shape = canvas.box("tl-compute", block.start, block.start + block.busy, y, tip, gap=0.4)
        if shape:
            yield shape
            if block.count == 1:
                yield canvas.label("tl-in", (block.start, block.end), y, short_name(name))


def _rows(flights: Sequence[_Flight]) -> list[list[_Flight]]:
    """Divide flights, in order of their starts, into rows without overlaps; the last of `MOST_ROWS` may have some."""
    rows: list[list[_Flight]] = []
    for flight in flights:
        row = next((row for row in rows if row[-1][0].end <= flight[0].start), None)
        if row is None and len(rows) < MOST_ROWS:
            rows.append([])
        (rows[-1] if row is None else row).append(flight)
    return rows


def _flights(row: Sequence[_Flight], exposed: Coverage, canvas: _Canvas, y: float) -> Iterator[str]:
    """Yield the shapes of a row: wide collectives one by one, narrow ones in blocks with the exposed time first."""
    for block in blocks([(one.start, one.end) for one, _ in row], canvas.sliver):
        if canvas.x(block.start) >= canvas.right:
            return
        if block.count == 1:
            yield _flight(row[block.first], exposed, canvas, y)
            continue
        found = [row[index][1] for index in block.indices]
        flying, bare = sum(one.communication_ns for one in found), sum(one.exposed_ns for one in found)
        tip = f"{len(found)} collectives: {time_text(flying)}, {time_text(bare)} exposed"
        shapes = canvas.box("tl-exposed", block.start, block.start + bare, y)
        shapes += canvas.box("tl-hidden", block.start + bare, block.start + flying, y)
        yield f"<g><title>{escape(tip)}</title>{shapes}</g>"


def _flight(flight: _Flight, exposed: Coverage, canvas: _Canvas, y: float) -> str:
    (start, end), found = (flight[0].start, flight[0].end), flight[1]
    counted = end - found.communication_ns  # later than the start if the wait for late ranks is subtracted
    layer = "" if found.layer is None else f", layer {found.layer}"
    most = ", ".join(short_name(hider.name) for hider in found.hidden_by[:3])
    tip = f"{found.kind}{layer}: {time_text(found.communication_ns)}, {time_text(found.exposed_ns)} exposed"
    tip += f", hidden by {most}" if most else ""
    parts = [f"<title>{escape(tip)}</title>"]
    if counted > start:
        parts.append(canvas.box("tl-late", start, counted, y))
    pieces = list(exposed.split(counted, end, canvas.sliver))
    parts += [canvas.box("tl-exposed" if bare else "tl-hidden", left, right, y) for left, right, bare in pieces]
    parts.append(canvas.box("tl-edge", start, end, y))
    if pieces:
        left, right, bare = max(pieces, key=lambda piece: piece[1] - piece[0])
        parts.append(canvas.label("tl-on" if bare else "tl-in", (left, right), y, found.kind))
    return f"<g>{''.join(parts)}</g>"


def _axis(duration: int, canvas: _Canvas, top: float, y: float, width: int) -> Iterator[str]:
    """Yield ticks at 1, 2 or 5 times a power of ten, some eight of them."""
    steps = accumulate((1, *([2, 2.5, 2] * 20)), lambda step, factor: int(step * factor))
    step = next(step for step in steps if duration / step <= 9)
    for tick in range(0, duration + 1, step):
        x = canvas.x(canvas.origin + tick)
        yield f'<path class="tl-rule" d="M{x:.2f} {top:g}V{y:g}"/>'
        anchor = "end" if x > width - 22 else "middle"
        yield f'<text class="tl-soft" x="{x:.2f}" y="{y + 16:g}" text-anchor="{anchor}">{_tick(tick, step)}</text>'


def _tick(tick: int, step: int) -> str:
    unit, size = next(pair for pair in (("s", 10**9), ("ms", 10**6), ("us", 10**3), ("ns", 1)) if step >= pair[1] / 10)
    return f"{tick / size:g} {unit}"
