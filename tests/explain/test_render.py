# SPDX-License-Identifier: Apache-2.0
"""How tables and reports look: as text, as a picture, as a page."""

from __future__ import annotations

import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from farskip_compile.compiler.config import FarSkipConfig
from farskip_compile.demo import render as terminal
from farskip_compile.demo.render import page
from farskip_compile.demo.results import DemoCase, over_ranks
from farskip_compile.errors import ConfigError
from farskip_compile.passes.residual.termset import TermSet
from farskip_compile.tools.explain import Explanation, RefusedModel, layout, pages
from farskip_compile.tools.explain import text as render_text
from farskip_compile.tools.explain.layout import Cell, cells, counted, reads_text, short_place, shown_layers
from farskip_compile.tools.explain.overlappable import independent
from tests.explain.sample_reports import check, demo, farskip_report
from tests.pictures import assert_readable, kept_figures

DEEP = farskip_report("ddd" + "m" * 58)
SMALL = farskip_report("dmm")


def printed(renderable: object, width: int = 80, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    Console(file=file, width=width).print(renderable)
    return raw.getvalue().decode(encoding)


def explained(report, refusal=None, width=80, encoding="utf-8", **kwargs):
    found = Explanation("model", FarSkipConfig(), report, refusal)
    raw = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=raw, width=width)
    return printed(render_text.explanation(found, console, **kwargs), width, encoding)


@pytest.mark.parametrize(
    ("intervals", "text"),
    [
        ((), "nothing"),
        (((0, 1),), "e"),
        (((0, 2),), "e, a0"),
        (((0, 6),), "e..s1"),
        (((0, 4), (5, 6)), "e..s1 without r1"),
        (((0, 1), (5, 6)), "e, s1"),
        (((0, 1), (7, 9)), "e, r2..s2"),
    ],
)
def test_sets_of_terms_are_short(intervals, text):
    assert reads_text(SMALL.table, TermSet(intervals)) == text


def test_names_are_counted_and_places_shortened():
    assert counted(["all_to_all", "all_reduce", "all_to_all"]) == "all_to_all x2, all_reduce"
    assert short_place(f"at {Path.cwd()}/a/b.py:3") == "at a/b.py:3"
    assert short_place("/x/lib/python3/site-packages/transformers/m.py:7") == "transformers/m.py:7"


def test_cells_of_a_small_table():
    lines = dict(zip((row.name for row in SMALL.rows), cells(SMALL.table), strict=True))
    assert [*map(str, lines["moe.1"][:6])] == [Cell.READ] * 3 + [Cell.LEFT_OUT] + [Cell.OWN] * 2
    assert set(lines["moe.1"][6:]) == {Cell.LATER}
    assert lines["attention.2"][4] is Cell.LEFT_OUT
    assert lines["attention.2"][5] is Cell.READ


@pytest.mark.parametrize(
    ("layers", "rewired", "shown"),
    [
        ("dmm", None, (0, 1, 2)),
        ("ddd" + "m" * 58, None, (0, 1, 2, 3, 4, 60)),
        ("dm" * 12, None, (0, 1, 2, 3, 23)),
        ("m" * 30, range(10, 20), (0, 10, 20, 29)),
    ],
)
def test_deep_models_show_each_pattern_once(layers, rewired, shown):
    found = shown_layers(farskip_report(layers, rewired).table)
    assert found.layers == shown
    assert found.repeats


def test_models_without_a_pattern_show_head_and_tail():
    rewired_here_and_there = [farskip_report("m" * 40, range(k, k + 1)) for k in range(0, 40, 3)]
    rows = tuple(rewired_here_and_there[row.layer // 3].rows[i] for i, row in enumerate(DEEP.rows[:80]))
    found = shown_layers(dataclasses.replace(rewired_here_and_there[0].table, rows=rows))
    assert not found.repeats or len(found.layers) <= 12
    assert shown_layers(DEEP.table, everything=True).layers == tuple(range(61))


def test_what_can_run_beside_a_term():
    rewired, written = SMALL.table, SMALL.table.as_written()
    assert independent(written, written.row("moe.1")) == ("s1",)
    assert independent(rewired, rewired.row("moe.1")) == ("a1", "s1", "a2")
    assert independent(written, written.row("attention.1")) == ()
    assert independent(rewired, rewired.row("attention.2")) == ("r1", "r2", "s2")


@pytest.mark.parametrize("report", [SMALL, DEEP, farskip_report("m" * 30, range(10, 20))])
def test_text_fits_into_80_columns(report):
    text = explained(report)
    assert max(map(len, text.splitlines())) <= 80
    assert "left out by the rewiring" in text
    assert "final norm" in text


def test_text_of_a_deep_model_names_what_it_hides_and_can_show_all():
    assert "layers 5 to 59 alike" in explained(DEEP)
    everything = explained(DEEP, everything=True)
    assert "alike" not in everything
    assert all(row.name in everything for row in DEEP.rows)


def test_text_without_unicode():
    text = explained(SMALL, encoding="ascii")
    assert "O left out by the rewiring" in text


def test_wide_text_shows_the_source_lines():
    assert "model.py:12" in explained(SMALL, width=120)


def test_refusals_show_reason_place_and_way_out():
    refusal = RefusedModel("NotASumError", "the stream is mixed", "layer 3, at model.py:9", "compile something else")
    for report in (None, SMALL):
        text = explained(report, refusal)
        for part in ("NotASumError", "the stream is mixed", "model.py:9", "compile something else"):
            assert part in text


def test_pictures_of_any_depth(tmp_path):
    render_png = pytest.importorskip("farskip_compile.tools.explain.png")
    pytest.importorskip("matplotlib")
    with kept_figures() as figures:
        for name, report in (("small", SMALL), ("deep", DEEP)):
            render_png.draw(report.table, tmp_path / "new" / f"{name}.png", f"{name}\nsecond line")
            assert (tmp_path / "new" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    for figure, name in zip(figures, ("small", "deep"), strict=True):
        assert_readable(figure, name, "second line", "rows: sub-blocks; columns: the terms that they read")
    with pytest.raises(ConfigError, match="can't be written"):
        render_png.draw(SMALL.table, tmp_path / "table.doc", "title")


class _Page(HTMLParser):
    """Collects what the tests ask about, and checks that tags are closed in order."""

    VOID = frozenset({"meta", "br", "rect", "circle", "path"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        assert tag not in ("script", "link", "iframe", "object", "img")

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_self_contained():
    finished = demo()
    text = page(finished)
    parsed = _Page()
    parsed.feed(text)
    assert not parsed.open
    assert not parsed.loads
    assert not re.search(r"https?://|url\(|@import", text)
    words = "".join(parsed.text)
    for row in finished.cases[0].report.rows:
        assert words.count(row.name) >= 2  # in the drawing and in the table
        assert finished.cases[0].report.table.evidence(row) in words
    for part in ("1 of 1 checks passed; 1 part skipped", "something is not installed", "torch 2.13.0", "farskip demo"):
        assert part in words
    assert "prefers-color-scheme:dark" in text
    assert 'name="viewport"' in text


def test_the_page_of_a_failure_says_so():
    text = page(
        demo(DemoCase("one", "about", report=SMALL, checks=(check(outputs_equal=False, output_difference=1e-3),)))
    )
    assert "✗ failed" in text
    assert 'class="verdict bad"' in text


def test_drawings_of_deep_models_are_short():
    drawing = pages.connectivity(DEEP.table)
    assert "moe.60" in drawing
    assert "moe.30" not in drawing
    assert drawing.count("<title>attention.4 read r3 as written; the rewiring leaves it out</title>") == 1


def test_checks_pass_and_fail_as_they_should():
    assert check().passed
    assert not check(outputs_equal=False, output_difference=1e-16).passed
    assert not check(gradient_difference=1e-9).passed
    assert not check(gradient_difference=float("nan")).passed
    assert not check(plain_difference=0.0).passed
    assert check(outputs_equal=False, output_difference=1e-7, output_tolerance=1e-4).passed
    assert not check(outputs_equal=False, output_difference=float("nan"), output_tolerance=1e-4).passed


def test_ranks_are_put_together_by_their_worst():
    good = DemoCase("one", "about", report=SMALL, checks=(check(),))
    bad = DemoCase("one", "about", report=SMALL, checks=(check(outputs_equal=False, output_difference=0.25),))
    both = over_ranks([good, bad])
    assert both.ranks == 2
    assert both.checks[0].output_difference == 0.25
    assert not both.passed


def test_the_demo_on_a_terminal():
    finished = demo()
    console = Console(width=80)
    for case in finished.cases:
        text = printed(terminal.case_lines(case, console))
        assert case.title in text
        assert max(map(len, text.splitlines())) <= 80
    assert "bit-equal" in printed(terminal.case_lines(finished.cases[0], console))
    assert "1 of 1 checks passed" in printed(terminal.closing(finished, Path("out/page.html")))


def test_colours_differ_in_lightness_too():
    def lightness(colour: str) -> float:
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        return 0.299 * red + 0.587 * green + 0.114 * blue

    for theme in (layout.LIGHT, layout.DARK):
        assert abs(lightness(theme[Cell.READ]) - lightness(theme[Cell.LEFT_OUT])) > 50


def test_the_text_of_an_explanation_is_what_the_command_prints():
    reason = RefusedModel("DenseModelError", "no routed experts", way_out="another model")
    for report, refusal in ((DEEP, None), (DEEP, reason), (None, reason)):
        expected = "\n".join(line.rstrip() for line in explained(report, refusal).splitlines())
        assert str(Explanation("model", FarSkipConfig(), report, refusal)) == expected.strip("\n")


@pytest.mark.parametrize("width", [1, 8, 30, 80])
def test_places_break_after_slashes(width: int) -> None:
    place = "transformers/integrations/sdpa_attention.py:182"
    lines = render_text.plain(lambda _: render_text.PlaceText(place), width).splitlines()
    assert "".join(line.strip() for line in lines) == place
    if width >= len("sdpa_attention.py:182"):
        assert all(line.endswith("/") for line in lines[:-1])
    assert len(lines) == {30: 2, 80: 1}.get(width, len(lines))
