# SPDX-License-Identifier: Apache-2.0
"""The scheduler's estimates next to the measurement: which run belongs to which schedule, means, text, JSON, page."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from farskip_compile.measure.profiling import overlap, overlap_page, report_text
from farskip_compile.measure.profiling.chrome import SCHEDULES, from_document
from farskip_compile.records.schedule import Predicted, ScheduleReport
from tests.profiling.traces import MAIN, document, event, gloo, op


def schedule(phase: str, launches: int, scale: float = 1.0) -> dict:
    after = Predicted(scale * 100e-6, scale * 80e-6, scale * 40e-6, scale * 20e-6, 0, 0)
    orders = {"0": ["all_reduce float32"] * launches}
    return ScheduleReport(phase, orders, before=after, after=after, profile="mine").to_json()


def graph(name: str, start: float, launches: int, busy: float) -> list[dict]:
    """A run: `busy` us of compute, then collectives of 10 us each that nothing hides."""
    found = [event("cpu_op", f"## Call CompiledFxGraph {name} ##", start, start + busy + 10 * launches + 5, MAIN)]
    found.append(op("graph_0_cpp_fused_add_0", start, start + busy))
    for index in range(launches):
        at = start + busy + 10 * index
        found += [op("c10d::allreduce_", at, at + 1), gloo("all_reduce", at + 1, at + 10)]
        found.append(op("_c10d_functional::wait_tensor", at + 1, at + 10))
    return found


def trace(events, schedules, rank=0):
    return from_document(document(events, rank, world_size=2, **{SCHEDULES: schedules}), "constructed")


def step(slower: float = 0.0) -> list[dict]:
    return [*graph("aa", 0, 2, 50 + slower), *graph("bb", 200, 3, 100 + slower)]


def test_runs_find_their_schedules_and_ranks_are_averaged() -> None:
    known = [schedule("forward", 7), schedule("forward", 2), schedule("backward", 3, 2.0)]  # the first did not run
    report = overlap([trace(step(), known), trace(step(slower=10), known, 1)])
    assert [(row.name, row.collectives) for row in report.estimates] == [("forward", 2), ("backward", 3), ("total", 5)]
    forward, backward, total = report.estimates
    assert forward.estimated.to_json() == {
        "compute_ns": 80_000, "communication_ns": 40_000, "exposed_ns": 20_000, "step_ns": 100_000
    }  # fmt: skip
    assert forward.measured is not None
    assert forward.measured.to_json() == {
        "compute_ns": 55_000, "communication_ns": 18_000, "exposed_ns": 18_000, "step_ns": 80_000
    }  # fmt: skip
    assert backward.measured is not None
    assert (backward.measured.compute_ns, backward.measured.communication_ns) == (105_000, 27_000)
    assert total.estimated.compute_ns == 3 * 80_000
    assert total.measured is not None
    assert total.measured.compute_ns == 160_000
    assert total.profile == "mine"


def test_several_runs_of_one_graph_are_averaged_and_graphs_of_one_phase_are_numbered() -> None:
    events = [*graph("aa", 0, 2, 50), *graph("aa", 200, 2, 70), *graph("cc", 400, 1, 10)]
    report = overlap(trace(events, [schedule("inference", 2), schedule("inference", 1)]))
    assert [row.name for row in report.estimates] == ["inference 1", "inference 2", "total"]
    assert report.estimates[0].measured is not None
    assert report.estimates[0].measured.compute_ns == 60_000


def test_graphs_with_equally_many_collectives_go_by_order() -> None:
    events = [*graph("aa", 0, 2, 50), *graph("bb", 200, 2, 100)]
    known = [schedule("inference", 2), schedule("forward", 2), schedule("backward", 2)]  # the first is of another model
    forward, backward, _ = overlap(trace(events, known)).estimates
    assert (forward.name, backward.name) == ("forward", "backward")
    assert forward.measured is not None
    assert backward.measured is not None
    assert (forward.measured.compute_ns, backward.measured.compute_ns) == (50_000, 100_000)


def test_what_can_not_be_told_is_not_guessed() -> None:
    report = overlap(trace(step(), [schedule("forward", 9)]))
    forward, total = report.estimates
    assert forward.measured is None
    assert total.measured is not None
    assert total.measured.compute_ns == 150_000  # of the whole trace
    assert overlap(trace(step(), [])).estimates == ()
    assert overlap(trace(step(), "nonsense")).estimates == ()
    assert overlap(trace(step(), [{**schedule("forward", 2), "after": None}])).estimates == ()


@pytest.mark.parametrize("width", [80, 120])
def test_text_page_and_json_show_both(width: int) -> None:
    report = overlap(trace(step(), [schedule("forward", 2), schedule("backward", 3)]))
    out = io.StringIO()
    console = Console(file=out, width=width)
    console.print(report_text(report, console))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "Estimated (mine) and measured" in text
    rows = [line.split() for line in text.splitlines() if " estimated " in line or " measured " in line]
    assert [" ".join(row[-8:]) for row in rows if row[0] == "forward"] == ["80.0 us 40.0 us 20.0 us 100 us"]
    page = overlap_page(report)
    assert "Estimated and measured" in page
    assert page.count(">estimated<") == page.count(">measured<") == 3
    document = json.loads(json.dumps(report.to_json()))
    assert [row["name"] for row in document["estimates"]] == ["forward", "backward", "total"]
    bare = overlap(trace(step(), []))
    assert "stimated" not in overlap_page(bare)
