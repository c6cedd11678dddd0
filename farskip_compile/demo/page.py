"""The demo's report: one page that needs nothing but itself.

Contract: `page` gives a complete HTML document: no script, no link to load, no picture from elsewhere. It shows every
sub-block of every case, every check, and what is needed to run it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from farskip_compile.demo.overlap_page import overlap_section
from farskip_compile.demo.results import Case, Check, Demo, bits, number
from farskip_compile.explain import svg
from farskip_compile.explain.layout import counted, reads_text, short_place
from farskip_compile.explain.overlappable import independent
from farskip_compile.explain.style import style_sheet
from farskip_compile.passes.residual.table import Table

Field = tuple[str, str]
"""CSS classes of a cell and its content, as HTML."""


def page(demo: Demo) -> str:
    """The whole document."""
    body = [
        _summary(demo),
        _idea(),
        '<h2 id="checks">Checked against the hand-written form</h2>',
        _checks_intro(),
        _checks(demo.cases),
        overlap_section(demo.overlap),
        "<h2>What was found and rewired</h2>",
        *(_case(case) for case in demo.cases),
        _timings(demo.cases),
        _provenance(demo),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>farskip demo</title><style>{style_sheet()}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _summary(demo: Demo) -> str:
    sign, style = ("✓", "good") if demo.passed else ("✗", "bad")
    return (
        "<h1>farskip demo</h1>"
        "<p>Mixture-of-Experts models, rewired to FarSkip connectivity inside <code>torch.compile</code>, with their "
        "weights untouched, and compared with the same wiring written by hand.</p>"
        f'<p class="verdict {style}"><span aria-hidden="true">{sign}</span><span>{escape(demo.verdict())}</span></p>'
    )


def _idea() -> str:
    return (
        "<h2>The idea</h2>"
        '<div class="pair">'
        f"<figure>{svg.standard_layer()}<figcaption><b>Standard.</b> The experts read the attention's output, "
        "and the next attention reads the experts'. While tokens travel between ranks to the routed experts and back "
        "(dashed), only the shared experts have something to compute.</figcaption></figure>"
        f"<figure>{svg.farskip_layer()}<figcaption><b>FarSkip.</b> The experts read <i>x</i>, without the "
        "attention of their own layer. The attention reads <i>n</i>, without the routed experts of the layer before. "
        "Both can run while the tokens travel. Nothing is lost: every output reaches the stream.</figcaption></figure>"
        "</div>"
    )


def _checks_intro() -> str:
    return (
        '<p class="soft">The largest difference of outputs and of gradients, relative to the largest magnitude, over '
        "all ranks. The last number is the control: how far the rewired model is from the model as written, which "
        "must not be zero.</p>"
    )


def _checks(cases: Sequence[Case]) -> str:
    head = [
        ("", "model"),
        ("", "phase"),
        ("", "compiled with"),
        ("number", "outputs differ by"),
        ("number", "gradients differ by"),
        ("", "equal bit for bit"),
        ("number", "differs from plain"),
        ("", "result"),
    ]
    rows: list[list[Field]] = []
    for case in cases:
        rows += [_check_row(case, check) for check in case.checks]
        if case.problem:
            result = ("tight wait", "skipped") if case.skipped else ("tight bad", "✗ failed")
            rows.append([("", escape(case.title)), *[("", "")] * 6, result])
    return _table(head, rows)


def _check_row(case: Case, check: Check) -> list[Field]:
    setting = f"{check.inner}, {check.dtype}" + (f", {case.ranks} ranks" if case.ranks > 1 else "")
    return [
        ("", escape(case.title)),
        ("tight", check.phase),
        ("", escape(setting)),
        ("number", number(check.output_difference)),
        ("number", "&ndash;" if check.gradient_difference is None else number(check.gradient_difference)),
        ("", bits(check)),
        ("number", number(check.plain_difference)),
        ("tight good", "✓ passed") if check.passed else ("tight bad", "✗ failed"),
    ]


def _case(case: Case) -> str:
    ranks = f" {case.ranks} ranks of this machine." if case.ranks > 1 else ""
    parts = [f"<h3>{escape(case.title)}</h3>", f'<p class="soft">{escape(case.about)}.{ranks}</p>']
    if case.problem:
        style = "problem wait" if case.skipped else "problem"
        parts.append(f'<p class="{style}">{escape(case.problem)}</p>')
    if case.report is not None:
        parts += [
            f"<p>{escape(case.report.summary())}.</p>",
            f'<div class="scroll">{svg.connectivity(case.report.table)}</div>',
            svg.legend(case.report.table),
            '<p class="soft small">Columns are the terms of the residual sum: e embedding, a attention, m dense, '
            "s shared and r routed experts, with the number of the layer.</p>",
            _sub_blocks(case.report.table),
        ]
    return f'<section class="case">{"".join(parts)}</section>'


def _sub_blocks(table: Table) -> str:
    head = [
        ("", "sub-block"),
        ("", "evidence"),
        ("", "reads"),
        ("", "after rewiring"),
        ("", "collectives"),
        ("", "beside them, as written"),
        ("", "beside them, rewired"),
    ]
    rows = []
    for row, written in zip(table.rows, (before := table.as_written()).rows, strict=True):
        place = table.where(row)
        where = f'<br><code class="soft">{escape(short_place(place))}</code>' if place else ""
        after = reads_text(table, row.reads) if row.left_out else "unchanged"
        beside = (", ".join(independent(one, of)) or "nothing" for one, of in ((before, written), (table, row)))
        fields: list[Field] = [
            ("tight", escape(row.name)),
            ("", f"<span>{escape(table.evidence(row))}{where}</span>"),
            ("tight", escape(reads_text(table, row.reads_as_written))),
            ("after", escape(after)),
            ("", escape(counted(table.collectives(row))) or "none"),
            *(("", escape(names)) for names in beside),
        ]
        rows.append(fields)
    changed = [bool(row.left_out) for row in table.rows]
    note = (
        '<p class="soft">Beside the collectives of a sub-block can run what neither needs it nor is needed by it.</p>'
    )
    return f"<details open><summary>Sub-blocks</summary>{_table(head, rows, changed)}{note}</details>"


def _timings(cases: Iterable[Case]) -> str:
    rows: list[list[Field]] = []
    steps: list[str] = []
    for case in cases:
        if case.report is None:
            continue
        steps = steps or list(case.report.seconds)
        times = [case.report.seconds.get(step, 0.0) for step in steps]
        rows.append(
            [
                ("", escape(case.title)),
                ("number", str(case.report.nodes)),
                *(("number", f"{1000 * seconds:.1f}") for seconds in (*times, sum(times))),
            ]
        )
    head = [("", "model"), ("number", "graph nodes"), *(("number", escape(step)) for step in (*steps, "sum"))]
    note = '<p class="soft">Milliseconds for the first graph, on rank 0; capture and inner compiler not counted.</p>'
    return f"<h2>Time of each pass</h2>{note}{_table(head, rows)}" if rows else ""


def _provenance(demo: Demo) -> str:
    found = ", ".join(f"{escape(name)} {escape(version)}" for name, version in demo.versions.items())
    return (
        "<h2>Run it again</h2>"
        f"<p><code>{escape(demo.command)}</code></p>"
        f'<p class="soft">{escape(demo.started)}, {demo.seconds:.0f} s. {found}. Seeds are fixed.</p>'
    )


def _table(head: Sequence[Field], rows: Sequence[Sequence[Field]], changed: Sequence[bool] = ()) -> str:
    """A table that becomes a list of cards on a phone."""
    titles = "".join(f'<th class="{style}">{text}</th>' for style, text in head)
    lines = []
    for index, row in enumerate(rows):
        fields = "".join(
            f'<td class="{style}" data-label="{escape(label)}">{text}</td>'
            for (style, text), (_, label) in zip(row, head, strict=True)
        )
        lines.append(f"<tr{' class=changed' if index < len(changed) and changed[index] else ''}>{fields}</tr>")
    return (
        f'<div class="scroll"><table class="cards"><thead><tr>{titles}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
