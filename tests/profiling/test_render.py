# SPDX-License-Identifier: Apache-2.0
"""The report as text, timeline, page and JSON; the merged trace."""

from __future__ import annotations

import gzip
import io
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from rich.console import Console

from farskip_compile.measure.profiling import TraceError, merge_traces, overlap, overlap_page, report_text
from farskip_compile.measure.profiling.page import timeline_svg
from farskip_compile.measure.profiling.text import percent, time_text
from tests.profiling.gpu_traces import random_gpu_events
from tests.profiling.traces import BASE, OTHER_WORKER, annotation, gloo, op, trace, write

SVG = "{http://www.w3.org/2000/svg}"


def cpu_events(rank):
    return [
        annotation("layer 3", 0, 100),
        op("c10d::_allgather_base_", 0, 10),
        gloo("all_gather", 10, 110 + rank),
        op("aten::a_rather_long_name_of_an_operator", 20, 60),
        op("_c10d_functional::wait_tensor", 90, 115),
        op("c10d::allreduce_", 120, 125),
        gloo("all_reduce", 100, 150, OTHER_WORKER),
        op("aten::mm", 140, 200),
    ]


def cpu_report():
    return overlap([trace(cpu_events(rank), rank, world_size=4) for rank in (0, 1)])


def gpu_report(count=12):
    return overlap([trace(random_gpu_events(seed), seed) for seed in range(count)])


def shown(report, width, encoding="utf-8", **kwargs):
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding=encoding, write_through=True), width=width, highlight=False)
    console.print(report_text(report, console, **kwargs))
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("make", [cpu_report, gpu_report])
def test_text_fits_and_cuts_nothing_that_counts(make, width):
    report = make()
    lines = shown(report, width).splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    assert lines[0].startswith(f"{percent(report.total)} of communication hidden")
    assert all(part.name in "".join(lines) for rank in report.ranks for part in rank.kinds)


def test_text_says_what_matters():
    lines = shown(cpu_report(), 120).splitlines()
    text = "\n".join(lines)
    assert "2 ranks of 4" in lines[0]
    assert "By layer" in text
    row = next(line for line in lines if "all_gather_into_tensor" in line).split()
    assert row[1:6] == ["1", "100", "us", "60.5", "us"], "means of the ranks"
    assert "a_rather_long_name_of_an_operator 100%" in text
    assert re.search(r"^ +1 +140 us +90\.0 us +35\.7% +█+░+ +25\.0 us", text, re.MULTILINE)


def test_text_of_many_ranks_and_without_unicode():
    text = shown(gpu_report(), 80, encoding="ascii")
    assert "The 8 ranks with most exposed time" in text
    assert "#" in text
    everything = shown(gpu_report(), 80, everything=True)
    assert everything.count("send_recv") > 100


@pytest.mark.parametrize(
    ("time", "text"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (1000, "1.00 us"),
        (12_345, "12.3 us"),
        (999_600, "1.00 ms"),
        (6e9, "6.00 s"),
        (4e12, "4000 s"),
    ],
)
def test_times_have_three_digits(time, text):
    assert time_text(time) == text


def boxes(svg, style):
    return [rect for rect in ElementTree.fromstring(svg).iter(f"{SVG}rect") if rect.get("class") == style]


def test_timeline_is_drawn_to_scale():
    report = cpu_report()
    svg = timeline_svg(report, title="plain <Inductor>", ranks=[0], duration_ns=400_000)
    assert "plain &lt;Inductor&gt;" in svg
    per_us = (960 - 132 - 12) / 400
    exposed = [(float(rect.get("x")), float(rect.get("width"))) for rect in boxes(svg, "tl-exposed")]
    # 10-20 and 60-110 of the all-gather, 100-140 of the all-reduce; the trace starts at 10 us
    expected = [(0, 10), (50, 50), (90, 40)]
    assert exposed == [pytest.approx((132 + x * per_us, w * per_us), abs=0.02) for x, w in expected]
    hidden = sum(float(rect.get("width")) for rect in boxes(svg, "tl-hidden"))
    assert hidden == pytest.approx(50 * per_us, abs=0.05)
    assert len({rect.get("y") for rect in boxes(svg, "tl-hidden")}) == 2, "collectives at once lie in two rows"
    tips = [title.text for title in ElementTree.fromstring(svg).iter(f"{SVG}title")]
    assert (
        "all_gather_into_tensor, layer 3: 100 us, 60.0 us exposed, hidden by a_rather_long_name_of_an_operator" in tips
    )


def test_timeline_shows_subtracted_waits_and_stays_small():
    late = [gloo("all_reduce", 50, 90)]
    ranks = [trace([gloo("all_reduce", 0, 90)], 0, world_size=2), trace(late, 1, world_size=2)]
    report = overlap(ranks, subtract_peer_wait=True)
    assert len(boxes(timeline_svg(report), "tl-late")) == 1
    busy = [op("aten::mm", 3 * i, 3 * i + 2) for i in range(3_000)]
    flying = [gloo("all_reduce", 0, 4_500), *(gloo("all_to_all", i, i + 1) for i in range(4_500, 9_000))]
    svg = timeline_svg(trace([*busy, *flying]))
    for style, share in (("tl-compute", 2 / 3), ("tl-hidden", 2 / 3), ("tl-exposed", 1 / 3)):
        drawn = [float(rect.get("width")) for rect in boxes(svg, style)]
        assert len(drawn) < 1000
        assert sum(drawn) / (960 - 132 - 12) == pytest.approx(share, abs=0.12)


class Tags(HTMLParser):
    """Checks that tags are closed in order, and that nothing is loaded."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "link", "iframe", "object", "img")
        assert not {"src", "href"} & {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_whole():
    page = overlap_page(cpu_report())
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    assert "<h2>By layer</h2>" in page
    assert page.count("all_gather_into_tensor") > 4


def test_json_has_every_number():
    found = json.loads(json.dumps(cpu_report().to_json()))
    (first, second) = found["ranks"]
    assert (first["rank"], second["rank"], found["device"], found["world_size"]) == (0, 1, "cpu", 4)
    assert first["collectives"][0] == {
        "index": 0,
        "kind": "all_gather_into_tensor",
        "group": None,
        "layer": 3,
        "start_ns": 0,
        "communication_ns": 100_000,
        "exposed_ns": 60_000,
        "hidden_ns": 40_000,
        "overlap": 0.4,
        "peer_wait_ns": None,
        "hidden_by": [{"name": "aten::a_rather_long_name_of_an_operator", "time_ns": 40_000}],
    }
    assert [part["name"] for part in first["layers"]] == ["3", "?"]
    assert found["total"]["communication_ns"] == first["communication_ns"] + second["communication_ns"]


@pytest.mark.parametrize("name", ["merged.json", "merged.json.gz"])
def test_merged_traces_keep_times_and_tell_ranks_apart(name, tmp_path):
    marks = [
        {"ph": "M", "name": "process_labels", "pid": 4242, "tid": 0, "ts": 0, "args": {"labels": "CPU"}},
        {"ph": "M", "name": "process_name", "pid": 7, "tid": 0, "ts": 0, "args": {"name": "an idle GPU"}},
        {"ph": "s", "id": 5, "name": "fwdbwd", "pid": 4242, "tid": 1, "ts": 3},
        {"ph": "i", "name": "Iteration Start", "pid": "Traces", "tid": "Trace", "ts": 0},
    ]
    first = write(tmp_path / "0.json", [*cpu_events(0), *marks], 0)
    second = write(tmp_path / "1.json", cpu_events(1), 1)
    text = json.loads(second.read_text())
    text["baseTimeNanoseconds"] = BASE + 1_000_000
    second.write_text(json.dumps(text))
    out = merge_traces([first, second], tmp_path / name)
    merged = json.loads(gzip.decompress(out.read_bytes()) if out.suffix == ".gz" else out.read_text())
    events = merged["traceEvents"]
    reduces = [(e["pid"], e["ts"], e["dur"]) for e in events if e["name"] == "gloo:all_reduce"]
    assert reduces == [(1, 100, 50), (1001, 1100, 50)], "the second clock starts a millisecond later"
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {1: "rank 0 CPU", 1001: "rank 1"}
    assert [e["id"] for e in events if e["ph"] == "s"] == ["0:5"]
    exposed = [(e["pid"], e["ts"], e["dur"]) for e in events if e["name"] == "exposed"]
    assert exposed == [(1, 10, 10), (1, 60, 80), (1001, 1010, 10), (1001, 1060, 80)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.json", "1.json", name], "no half-written file"


def test_what_can_not_be_merged(tmp_path):
    path = write(tmp_path / "0.json", cpu_events(0), 0)
    same = write(tmp_path / "again.json", cpu_events(0), 0)
    with pytest.raises(TraceError, match="is one of the traces to merge"):
        merge_traces([path], path)
    with pytest.raises(TraceError, match="both of rank 0"):
        merge_traces([path, same], tmp_path / "out.json")
    with pytest.raises(TraceError, match="can't write"):
        merge_traces([path], tmp_path / "none" / "out.json")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0.json", "again.json"]
