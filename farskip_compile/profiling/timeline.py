"""Draws a report as a timeline: for each rank a lane of compute, and lanes of collectives with exposed parts marked.

In:    an `OverlapReport`, or a `Trace` to report on.
Out:   one SVG element as text, with its own style: stands alone or in an HTML page, on light and on dark ground. It
       is at least 36 rem wide: let the element around it scroll.
Never: draws more shapes than the picture has room for: what is narrower than a pixel or two is drawn together.

Exposed parts differ from hidden ones in lightness as well as in hue.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate

from farskip_compile.layout import Cell
from farskip_compile.palette import DARK, LIGHT
from farskip_compile.profiling.intervals import Span, difference, union
from farskip_compile.profiling.lanes import Segment
from farskip_compile.profiling.measure import overlap
from farskip_compile.profiling.report import CollectiveReport, OverlapReport, RankReport
from farskip_compile.profiling.text import percent, short_name, time_text
from farskip_compile.profiling.trace import Trace

NAMES, RIGHT = 132, 12
ROW, GAP, RANK_GAP, AXIS = 20, 4, 14, 30
SLIVER = 2.0
"""Pixels below which a segment has no shape of its own."""
LETTER = 6.6
MOST_RANKS = 8

_COLOURS = (
    f".tl{{color-scheme:light dark;--tl-compute:{LIGHT[Cell.READ]};--tl-exposed:{LIGHT[Cell.LEFT_OUT]};"
    "--tl-hidden:#7fc4cf;--tl-ink:#1d2126;--tl-soft:#5f6770;--tl-rule:#e3e5e8;--tl-on:#fff}"
    f"@media(prefers-color-scheme:dark){{.tl{{--tl-compute:{DARK[Cell.READ]};--tl-exposed:{DARK[Cell.LEFT_OUT]};"
    "--tl-hidden:#2f7d95;--tl-ink:#e6e8eb;--tl-soft:#9aa3ad;--tl-rule:#2f353d;--tl-on:#15181d}}"
)
_RULES = """
.tl{display:block;max-width:100%;height:auto}
.tl-picture{min-width:36rem}
.tl text{font:12px system-ui,-apple-system,"Segoe UI",sans-serif;fill:var(--tl-ink)}
.tl .tl-soft{font-size:11px;fill:var(--tl-soft)}
.tl .tl-rank{font-weight:600}
.tl .tl-on{font-size:11px;fill:var(--tl-on);pointer-events:none}
.tl .tl-in{font-size:11px;pointer-events:none}
.tl-compute{fill:var(--tl-compute)}.tl-hidden{fill:var(--tl-hidden)}.tl-exposed{fill:var(--tl-exposed)}
.tl-late{fill:none;stroke:var(--tl-soft);stroke-dasharray:2 2}
.tl-rule{stroke:var(--tl-rule)}
.tl-edge{fill:none}
.tl g:hover>.tl-edge,.tl rect.tl-compute:hover{stroke:var(--tl-ink);stroke-width:1}
"""


@dataclass(frozen=True)
class _Scale:
    """From nanoseconds to pixels."""

    origin: int
    per_ns: float

    def __call__(self, time: int) -> float:
        return NAMES + (time - self.origin) * self.per_ns


def timeline_svg(
    shown: OverlapReport | Trace,
    *,
    width: int = 960,
    duration_ns: int | None = None,
    title: str = "",
    ranks: Sequence[int] | None = None,
) -> str:
    """Draw a report.

    Args:
        shown: the report, or a trace to report on.
        width: of the picture, in pixels.
        duration_ns: the time that the width stands for, so that several timelines have one scale; by default the
            whole of the trace.
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
    scale = _Scale(origin, (width - NAMES - RIGHT) / duration)
    y = 24.0 if title else 6.0
    parts = [f'<text class="tl-rank" x="0" y="14">{escape(title)}</text>'] if title else []
    top = y
    for rank, trace in chosen:
        drawn, y = _rank(rank, trace, scale, y, width)
        parts += drawn
    parts[1 if title else 0 : 0] = _axis(duration, scale, top, y, width)  # the grid lies under the lanes
    height = y + AXIS
    label = f"Timeline of {len(chosen)} ranks: {percent(report.total)} of communication hidden"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="tl tl-picture" viewBox="0 0 {width} {height:g}" '
        f'width="{width}" role="img" aria-label="{escape(label)}">'
        f"<style>{_COLOURS}{_RULES}</style>{''.join(parts)}</svg>"
    )


def legend() -> str:
    """The meaning of the colours, as an HTML paragraph for a page that holds a timeline."""
    keys = [("tl-compute", "compute"), ("tl-hidden", "collective, hidden"), ("tl-exposed", "collective, exposed")]
    items = (
        f'<span class="key"><svg class="tl" width="16" height="12" viewBox="0 0 16 12" aria-hidden="true">'
        f'<rect class="{style}" width="16" height="12" rx="2"/></svg>{text}</span>'
        for style, text in keys
    )
    return f'<p class="legend">{"".join(items)}</p>'


def _rank(rank: RankReport, trace: Trace, scale: _Scale, y: float, width: int) -> tuple[list[str], float]:
    lanes = (*trace.work.values(), *trace.copies.values())
    segments = sorted((segment for lane in lanes for segment in lane), key=lambda segment: segment[:2])
    compute = union((start, end) for start, end, _ in segments)
    head = f'<text class="tl-rank" x="0" y="{y + 14:g}">rank {rank.rank}</text>'
    hidden = f'<text class="tl-soft" x="{NAMES - 10}" y="{y + 14:g}" text-anchor="end">compute</text>'
    parts = [head, hidden, *_compute(segments, scale, y, width)]
    y += ROW + GAP
    by_lane: dict[str, list[tuple[Span, CollectiveReport]]] = {}
    for one, found in zip(trace.collectives, rank.collectives, strict=True):
        by_lane.setdefault(one.lane, []).append(((one.start, one.end), found))
    for number, (lane, collectives) in enumerate(by_lane.items()):
        rows = _rows([span for span, _ in collectives])
        parts.append(f'<text class="tl-soft" x="{NAMES - 10}" y="{y + 14:g}" text-anchor="end">{escape(lane)}</text>')
        if number == 0:
            parts.append(f'<text class="tl-soft" x="0" y="{y + 14:g}">{percent(rank)} hidden</text>')
        for (span, found), row in zip(collectives, rows, strict=True):
            if scale(span[0]) < width - RIGHT:
                parts.append(_collective(span, found, compute, scale, y + row * ROW, width))
        y += ROW * (1 + max(rows)) + GAP
    return parts, y + RANK_GAP


def _compute(segments: Iterable[Segment], scale: _Scale, y: float, width: int) -> Iterator[str]:
    """Wide segments each, narrow ones in blocks."""
    for start, end, name, count in _blocks(segments, SLIVER / scale.per_ns):
        x, right = scale(start), min(scale(end), width - RIGHT)
        if x >= width - RIGHT:
            return
        label = short_name(name)
        tip = f"{name}, {time_text(end - start)}" if count == 1 else f"{count} operators in {time_text(end - start)}"
        shown = max(0.5, right - x - 0.4)
        yield (
            f'<rect class="tl-compute" x="{x:.2f}" y="{y:g}" width="{shown:.2f}" height="{ROW - 2}">'
            f"<title>{escape(tip)}</title></rect>"
        )
        if count == 1 and right - x > LETTER * len(label) + 6:
            yield f'<text class="tl-in" x="{x + 4:.2f}" y="{y + 13:g}">{escape(label)}</text>'


def _blocks(segments: Iterable[Segment], sliver: float) -> Iterator[tuple[int, int, str, int]]:
    """Segments of at least `sliver` as they are; shorter ones together, as far as no gap of that size parts them."""
    pending: tuple[int, int, str, int] | None = None
    for start, end, name in segments:
        if pending is not None and (end - start >= sliver or start - pending[1] >= sliver / 4):
            yield pending
            pending = None
        if end - start >= sliver:
            yield start, end, name, 1
        elif pending is None:
            pending = (start, end, name, 1)
        else:
            pending = (pending[0], max(pending[1], end), name, pending[3] + 1)
    if pending is not None:
        yield pending


def _rows(spans: Sequence[Span]) -> list[int]:
    """A row for each span, so that no two of a row overlap; spans are in order of their starts."""
    ends: list[int] = []
    rows = []
    for start, end in spans:
        row = next((row for row, last in enumerate(ends) if last <= start), len(ends))
        ends[row : row + 1] = [end]
        rows.append(row)
    return rows


def _collective(
    span: Span, found: CollectiveReport, compute: Sequence[Span], scale: _Scale, y: float, width: int
) -> str:
    start, end = span
    counted = end - found.communication_ns  # later than the start if the wait for late ranks is subtracted
    layer = "" if found.layer is None else f", layer {found.layer}"
    most = ", ".join(short_name(hider.name) for hider in found.hidden_by[:3])
    tip = f"{found.kind}{layer}: {time_text(found.communication_ns)}, {time_text(found.exposed_ns)} exposed"
    tip += f", hidden by {most}" if most else ""
    parts = [f"<title>{escape(tip)}</title>"]
    if counted > start:
        parts.append(_box("tl-late", scale(start), scale(counted), y, width))
    exposed = difference([(counted, end)], compute)
    pieces = [("tl-exposed", "tl-on", piece) for piece in exposed]
    pieces += [("tl-hidden", "tl-in", piece) for piece in difference([(counted, end)], exposed)]
    parts += [_box(style, scale(piece[0]), scale(piece[1]), y, width) for style, _, piece in pieces]
    parts.append(_box("tl-edge", scale(start), scale(end), y, width))
    if pieces:
        _, style, widest = max(pieces, key=lambda item: item[2][1] - item[2][0])
        x, right = scale(widest[0]), min(scale(widest[1]), width - RIGHT)
        if right - x > LETTER * len(found.kind) + 6:
            parts.append(f'<text class="{style}" x="{x + 4:.2f}" y="{y + 13:g}">{escape(found.kind)}</text>')
    return f"<g>{''.join(parts)}</g>"


def _box(style: str, x: float, right: float, y: float, width: int) -> str:
    right = min(right, width - RIGHT)
    if right <= x:
        return ""
    return f'<rect class="{style}" x="{x:.2f}" y="{y:g}" width="{max(0.6, right - x):.2f}" height="{ROW - 2}"/>'


def _axis(duration: int, scale: _Scale, top: float, y: float, width: int) -> Iterator[str]:
    """Ticks at 1, 2 or 5 times a power of ten, some eight of them."""
    step = next(step for step in _steps() if duration / step <= 9)
    for tick in range(0, duration + 1, step):
        x = scale(scale.origin + tick)
        yield f'<path class="tl-rule" d="M{x:.2f} {top:g}V{y:g}"/>'
        anchor = "end" if x > width - 22 else "middle"
        yield f'<text class="tl-soft" x="{x:.2f}" y="{y + 16:g}" text-anchor="{anchor}">{_tick(tick, step)}</text>'


def _steps() -> Iterator[int]:
    return accumulate((1, *([2, 2.5, 2] * 20)), lambda step, factor: int(step * factor))


def _tick(tick: int, step: int) -> str:
    unit, size = next(pair for pair in (("s", 10**9), ("ms", 10**6), ("us", 10**3), ("ns", 1)) if step >= pair[1] / 10)
    return f"{tick / size:g} {unit}"
