"""The overlap report as one HTML page: the timeline, and the tables behind it.

Contract: `overlap_page` gives a complete document that needs nothing else: no script, no link, light and dark. Its
pieces serve other pages: `parts_table`, `timeline.timeline_svg`, `timeline.legend`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from farskip_compile.explain.style import style_sheet
from farskip_compile.profiling.report import Hider, Overlap, OverlapReport, PartReport, RankReport
from farskip_compile.profiling.text import LEGEND, estimate_times, headline, percent, short_name, time_text
from farskip_compile.profiling.timeline import legend, timeline_svg

MOST_COLLECTIVES = 200

Field = tuple[str, str]
"""CSS classes of a cell and its content, as HTML."""


def overlap_page(report: OverlapReport) -> str:
    """The whole document."""
    sources = ", ".join(f"<code>{escape(trace.source)}</code>" for trace in report.traces)
    body = [
        "<h1>Overlap of communication and compute</h1>",
        f"<p>{escape(headline(report))}.</p>",
        *(f'<p class="problem wait">{escape(note)}</p>' for note in report.notes),
        f'<figure><div class="scroll">{timeline_svg(report)}</div>{legend()}</figure>',
        "<h2>Ranks</h2>",
        f'<p class="soft">{escape(LEGEND[0].upper() + LEGEND[1:])}.</p>',
        _ranks(report),
        "<h2>By collective</h2>",
        parts_table(report, "collective", lambda rank: rank.kinds),
    ]
    if any(rank.layers for rank in report.ranks):
        body += ["<h2>By layer</h2>", parts_table(report, "layer", lambda rank: rank.layers)]
    if report.estimates:
        body += ["<h2>Estimated and measured</h2>", estimates_table(report)]
    body += ["<h2>Every collective</h2>", _collectives(report), f'<p class="soft small">Read from {sources}.</p>']
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>farskip overlap</title><style>{style_sheet()}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def parts_table(report: OverlapReport, column: str, of: Callable[[RankReport], Sequence[PartReport]]) -> str:
    """Kinds or layers, a row for each of each rank."""
    head = [("", column), ("number", "rank"), ("number", "count"), *_HEAD, ("", "hidden by")]
    names = list(dict.fromkeys(part.name for rank in report.ranks for part in of(rank)))
    rows: list[list[Field]] = []
    for name in names:
        for rank in report.ranks:
            rows += [
                [
                    ("tight", escape(name)),
                    ("number", str(rank.rank)),
                    ("number", str(part.count)),
                    *_times(part),
                    ("", _hiders(part.hidden_by)),
                ]
                for part in of(rank)
                if part.name == name
            ]
    return _table(head, rows)


def estimates_table(report: OverlapReport) -> str:
    """What the scheduler expected of each graph, and what the trace shows; two rows each."""
    head: list[Field] = [("", "graph"), ("", ""), ("", "hardware profile"), ("number", "collectives")]
    head += [("number", name) for name in ("compute", "communication", "exposed", "step")]
    rows: list[list[Field]] = []
    for row in report.estimates:
        for label, times in (("estimated", row.estimated), ("measured", row.measured)):
            texts = ["&ndash;"] * 4 if times is None else map(time_text, estimate_times(times))
            names = [("tight", escape(row.name)), ("", label), ("", escape(row.profile))]
            rows.append([*names, ("number", str(row.collectives)), *(("number", text) for text in texts)])
    return _table(head, rows)


_HEAD: list[Field] = [("number", "in flight"), ("number", "exposed"), ("number", "hidden")]


def _ranks(report: OverlapReport) -> str:
    head = [("", "rank"), *_HEAD, ("number", "in wait"), ("number", "for late ranks"), ("number", "compute")]
    rows = [
        [
            ("", f"rank {rank.rank}"),
            *_times(rank),
            ("number", _optional(rank.waiting_ns)),
            ("number", _optional(rank.peer_wait_ns)),
            ("number", time_text(rank.compute_ns)),
        ]
        for rank in report.ranks
    ]
    return _table(head, rows)


def _collectives(report: OverlapReport) -> str:
    found = [(rank, one) for rank in report.ranks for one in rank.collectives]
    layers = any(one.layer is not None for _, one in found)
    groups = any(one.group is not None for _, one in found)
    head: list[Field] = [("", "collective"), ("number", "rank")]
    head += [("number", "layer")] if layers else []
    head += [("", "group")] if groups else []
    head += [("number", "at"), *_HEAD, ("", "hidden by")]
    rows: list[list[Field]] = []
    for rank, one in found[:MOST_COLLECTIVES]:
        row: list[Field] = [("tight", escape(one.kind)), ("number", str(rank.rank))]
        row += [("number", "?" if one.layer is None else str(one.layer))] if layers else []
        row += [("", escape(one.group or "?"))] if groups else []
        rows.append([*row, ("number", time_text(one.start_ns)), *_times(one), ("", _hiders(one.hidden_by))])
    rest = len(found) - len(rows)
    more = f'<p class="soft">{rest} more are in the JSON of <code>farskip overlap --json</code>.</p>' if rest else ""
    return (
        f"<details{'' if len(found) > 40 else ' open'}><summary>In order</summary>{_table(head, rows)}{more}</details>"
    )


def _times(share: Overlap) -> list[Field]:
    style = "number bad" if share.exposed_ns else "number good"
    return [
        ("number", time_text(share.communication_ns)),
        (style, time_text(share.exposed_ns)),
        ("number", percent(share)),
    ]


def _optional(time_ns: int | None) -> str:
    return "&ndash;" if time_ns is None else time_text(time_ns)


def _hiders(hiders: Sequence[Hider]) -> str:
    whole = sum(hider.time_ns for hider in hiders)
    most = [hider for hider in hiders[:4] if hider.time_ns >= 0.005 * whole]
    return (
        escape(", ".join(f"{short_name(hider.name)} {100 * hider.time_ns / whole:.0f}%" for hider in most)) or "nothing"
    )


def _table(head: Sequence[Field], rows: Sequence[Sequence[Field]]) -> str:
    """A table that becomes a list of cards on a phone."""
    titles = "".join(f'<th class="{style}">{text}</th>' for style, text in head)
    lines = []
    for row in rows:
        fields = (
            f'<td class="{style}" data-label="{escape(label)}">{text}</td>'
            for (style, text), (_, label) in zip(row, head, strict=True)
        )
        lines.append(f"<tr>{''.join(fields)}</tr>")
    return (
        f'<div class="scroll"><table class="cards"><thead><tr>{titles}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
