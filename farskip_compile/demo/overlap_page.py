"""The demo's overlap part in its HTML report: a table of the variants, and their timelines on one time scale.

Contract: `overlap_section` gives HTML for a page with the report's style sheet, and nothing that it would load.
"""

from __future__ import annotations

from html import escape

from farskip_compile.demo.compared import Comparison, Variant
from farskip_compile.demo.overlap import trace_name
from farskip_compile.demo.results import number
from farskip_compile.profiling.html_page import parts_table
from farskip_compile.profiling.text import percent, time_text
from farskip_compile.profiling.timeline import legend, timeline_svg

HEAD = ("variant", "in flight", "exposed", "hidden", "predicted exposed", "differs from eager", "result")


def overlap_section(found: Comparison | None) -> str:
    """The section; empty without a comparison."""
    if found is None:
        return ""
    parts = [f'<h2 id="overlap">{escape(found.title)}</h2>', f'<p class="soft">{escape(found.about)}.</p>']
    if found.problem:
        style = "problem wait" if found.skipped else "problem"
        return "".join([*parts, f'<p class="{style}">{escape(found.problem)}</p>'])
    duration = max(variant.duration_ns for variant in found.variants)
    parts += [f'<p class="problem wait">{escape(found.note)}</p>', _table(found)]
    timelines = "".join(
        f'<div class="scroll">{timeline_svg(variant.report, duration_ns=duration, title=variant.name)}</div>'
        for variant in found.variants
    )
    parts.append(f"<figure>{timelines}{legend()}<figcaption>One time scale for all.</figcaption></figure>")
    for variant in found.variants:
        table = parts_table(variant.report, "collective", lambda rank: rank.kinds)
        parts.append(f"<details><summary>{escape(variant.name)}: what hid it</summary>{table}</details>")
    return "".join(parts)


def _table(found: Comparison) -> str:
    titles = "".join(f'<th class="{"number" if 0 < n < 6 else ""}">{name}</th>' for n, name in enumerate(HEAD))
    rows = "".join(_row(variant) for variant in found.variants)
    files = ", ".join(f"<code>{trace_name(variant.name)}</code>" for variant in found.variants)
    return (
        f'<div class="scroll"><table class="cards"><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table></div>'
        '<p class="soft">Times are means of a rank, of the middle one of several recorded runs. Predicted is what the '
        "scheduler expects by the shipped hardware profile. The difference is that of the logits to the same wiring "
        f"run eagerly. Chrome traces of both ranks lie beside this page, for ui.perfetto.dev: {files}.</p>"
    )


def _row(variant: Variant) -> str:
    predicted = variant.predicted_exposed_ns
    fields = (
        ("tight", escape(variant.name)),
        ("number", time_text(variant.communication_ns)),
        ("number", time_text(variant.exposed_ns)),
        ("number", percent(variant.report.total)),
        ("number", "&ndash;" if predicted is None else time_text(predicted)),
        ("number", number(variant.difference)),
        ("tight good", "✓ passed") if variant.passed else ("tight bad", "✗ failed"),
    )
    return (
        "<tr>"
        + "".join(
            f'<td class="{style}" data-label="{label}">{text}</td>'
            for (style, text), label in zip(fields, HEAD, strict=True)
        )
        + "</tr>"
    )
