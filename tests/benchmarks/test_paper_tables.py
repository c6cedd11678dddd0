# SPDX-License-Identifier: Apache-2.0
"""Published and predicted: arithmetic of the comparison, its targets, its tables."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import paper_tables
import pytest
from common import decode
from paper_bench.others import OTHERS, OtherRow, _predict, others_table
from paper_bench.predicted import FromStepTime, Predicted, Row
from paper_bench.published import PUBLISHED, six_layers
from paper_tables import overlap_table, own_cells, own_table, speed_table, step_time_table, targets, time_table

from farskip_compile.measure.simulate import Scenario


def predicted(published: float, farskip: float = 0.0, **changes: float) -> Predicted:
    fields = {"written": 2.0, "communication": 0.5, "compute": 1.5, "hidden_ours": 1.0, "took": 1.0, **changes}
    return Predicted(
        prompt=512,
        scheduled=1.0,
        published=published,
        farskip=farskip or published,
        hidden={"total": 0.9, "forward": 0.8, "backward": 1.0},
        exposed=(0.1, 0.0),
        **fields,
    )


def rows(**speedups: tuple[float, ...]) -> list[Row]:
    """All lines, predicted as they were published but for some."""
    found = []
    for line in PUBLISHED:
        name = line.name.replace("-", "_")
        values = speedups.get(name, line.speedup)
        each = values if len(line.scenarios) == len(values) else (values[0], *values, values[-1])[: len(line.scenarios)]
        found.append(Row(line.name, tuple(map(predicted, each))))
    return found


OWN = Path(paper_tables.OWN)


def test_all_met() -> None:
    assert [one.met for one in targets(rows(), own_cells(OWN))] == [True, True, True]


def test_a_cell_is_met_within_five_points() -> None:
    (row,) = [one for one in rows(v3_prefill=(1.376,)) if one.name == "v3-prefill"]
    assert [pair.met for pair in row.compared()] == [True]
    (row,) = [one for one in rows(v3_prefill=(1.377,)) if one.name == "v3-prefill"]
    assert [pair.met for pair in row.compared()] == [False]


def test_ends_of_a_range_are_compared_with_the_lowest_and_the_highest() -> None:
    row = Row("v2-prefill", tuple(map(predicted, (1.3, 1.1, 1.2))))
    assert [(pair.published, pair.predicted) for pair in row.compared()] == [(1.082, 1.1), (1.168, 1.3)]


def test_too_few_cells() -> None:
    missed = rows(v3_prefill=(1.5,), v2_lite_train=(1.5,))
    assert next((one.met, one.found) for one in targets(missed, own_cells(OWN))) == (False, "7 of 9")


def test_an_order_behind_amds() -> None:
    behind = [*(row for row in rows() if row.name != "v3-prefill"), Row("v3-prefill", (predicted(1.326, 1.32),))]
    assert [(one.met, one.found) for one in targets(behind, own_cells(OWN))][1] == (
        False,
        "v3-prefill: 0.60 points slower",
    )


@pytest.mark.parametrize("interference", [0.0, 0.1])
def test_how_much_slower_compute_would_have_to_be(interference: float) -> None:
    """1.5 s of compute, and 0.1 s of 0.5 s of communication exposed."""
    factor = predicted(1.3, compute=1.5 + interference).slower(1.1)
    written, published = factor * 1.5 + 0.5, factor * 1.5 + interference + 0.1
    assert written / published == pytest.approx(1.1)


def test_tables() -> None:
    text = "\n".join([*speed_table(rows()), *overlap_table(rows()), *time_table(rows()), *own_table(own_cells(OWN))])
    for part in ("| v3-prefill | 1.326 x | 1.326 x |", "| v2-lite-train | forward | 87.6% | 80.0% |", "| all |"):
        assert part in text, part


def test_from_published_times() -> None:
    """What the profile lacks is told by the time of a step; rows go through JSON unchanged."""
    start = FromStepTime(slower=1.5, written=0.0031, published=1.28, farskip=1.29)
    other = FromStepTime(slower=1.5, written=0.0031, published=1.27, farskip=1.27)
    found = [Row("v3-prefill", (replace(predicted(1.5), from_step_time=start),)), Row("v3-decode", (predicted(1.2),))]
    assert [decode(Row, json.loads(json.dumps(asdict(row)))) for row in found] == found
    table = step_time_table(found)
    assert "| v3-prefill | 2000 ms | 1.50 x | 3 ms | 1.326 x | 1.280 x | 1.290 x | yes |" in table
    assert not any("v3-decode" in line for line in table)
    (source,) = [line for line in table if line.startswith("- ")]
    assert "1507 ms" in source
    assert "https://rocm.blogs.amd.com" in source
    found = [Row("v3-prefill", (replace(predicted(1.5), from_step_time=other),))]
    assert step_time_table(found)[2].endswith("| no |")
    starts = [replace(start, published=one, written=one) for one in (1.15, 1.11, 1.4)]
    found = [Row("v2-prefill", tuple(replace(predicted(1.5), from_step_time=one) for one in starts))]
    assert step_time_table(found)[2].endswith(
        "| 1.50 x | 1110 ms to 1400 ms | 1.082 x to 1.168 x | 1.110 x to 1.400 x | 1.290 x | yes, no |"
    )


def test_the_published_cells_can_be_asked_for() -> None:
    pytest.importorskip("transformers")
    for line in PUBLISHED:
        for make in line.scenarios:
            scenario = make()
            assert scenario.architecture.config().num_hidden_layers > 0
    assert six_layers().config().num_hidden_layers == 6


def test_own_cells(tmp_path) -> None:
    graph = {order: {"seconds": seconds} for order, seconds in (("unscheduled", 3.0), ("after", 2.0))}
    cell = {
        "cell": "m/prefill/balanced/2/1.0",
        "estimates": {"none": [graph], "full": [graph, graph]},
        "timings": {"plain": {"median": 2.0}, "none": {"median": 2.5}, "full": {"median": 4.0}},
    }
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"cells": [cell]}))
    found = {one.name: (one.cells, one.middle, one.worst) for one in own_cells(path)}
    assert found == {
        "prefill, FarSkip": (1, 0.0, 0.0),
        "prefill, as written": (1, 0.5, 0.5),
        "prefill, overlapped only": (1, pytest.approx(0.2), pytest.approx(-0.2)),
        "all": (3, pytest.approx(0.2), 0.5),
    }


def test_other_systems() -> None:
    """Two micro-batches stand only where a system overlaps them; results from before there were any are read."""
    row = OtherRow("megatron-1f1b", 0.5, 0.25, 1.1, 1.2, 1.3, 1.4, 60.0, batches=1.25, farskip_batches=1.5)
    old = {key: value for key, value in asdict(row).items() if "batches" not in key}
    table = others_table([row, decode(OtherRow, {**old, "name": "megatron-chunked"})])
    assert (
        "| megatron-1f1b | 1.197 x | 1.100 x | 1.200 x | 1.250 x | 1.300 x | 1.400 x | 1.500 x | 500 ms | 50% |"
        in table
    )
    chunked = "| megatron-chunked | 1.135 x | 1.100 x | 1.200 x |  | 1.300 x | 1.400 x |  | 500 ms | 50% |"
    assert chunked in table


def test_two_micro_batches_are_twice_the_one_that_they_are_compared_with() -> None:
    pytest.importorskip("transformers")
    for known in OTHERS:
        if known.pair is not None:
            one, two = known.scenario(), known.pair()
            assert replace(two, batch=two.batch // 2, micro_batches=1) == replace(one, pieces=1)
    assert {known.name for known in OTHERS if known.pair is not None} == {"megatron-1f1b"}


def test_speed_ups_of_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces over one micro-batch as written; two beside each other over that one, twice."""

    def step(seconds: float) -> SimpleNamespace:
        return SimpleNamespace(seconds=seconds, communication=0.5)

    def predict(scenario: Scenario) -> SimpleNamespace:
        two = {"overlapped, 2 batches": step(2.5), "FarSkip, 2 batches": step(2.0)}
        cut = {"overlapped, 2 pieces": step(1.6), "FarSkip, 2 pieces": step(1.25)}
        took = dict.fromkeys(("model", "graphs", "orders"), 1.0)
        also = two if scenario.micro_batches == 2 else cut
        return SimpleNamespace(written=step(2.0), also=also, scheduled_speedup=1.1, speedup=1.2, took=took)

    monkeypatch.setattr("farskip_compile.measure.simulate.predict", predict)
    found = {known.name: _predict(index) for index, known in enumerate(OTHERS)}
    assert {(row.cut, row.farskip_cut) for row in found.values()} == {(1.25, 1.6)}
    assert (found["megatron-1f1b"].batches, found["megatron-1f1b"].farskip_batches) == (1.6, 2.0)
    assert found["megatron-chunked"].batches is None
    assert (found["megatron-1f1b"].took, found["megatron-chunked"].took) == (6.0, 3.0)


def test_the_page_is_that_of_its_results() -> None:
    kept = json.loads(paper_tables.JSON.read_text())
    others = decode(list[OtherRow], kept["others"])
    body = paper_tables.body(decode(list[Row], kept["rows"]), others, kept["about"])
    assert body in paper_tables.PAGE.read_text(encoding="utf-8")
