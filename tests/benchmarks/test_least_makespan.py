# SPDX-License-Identifier: Apache-2.0
"""Least makespans anew: of the very order in the file, or of none."""

from __future__ import annotations

import json

import least_makespan
import pytest
from common import DOCS
from overlap_bench.cells import NONE
from overlap_bench.results import Store

CELL = "llama4/decode/balanced/2/0.5"


@pytest.fixture
def file(tmp_path):
    """The results in docs/, with a least makespan that is too short."""
    store = Store.load(DOCS / "benchmarks.json")
    known = store.results[CELL].least_makespans[NONE]
    store.path = tmp_path / "benchmarks.json"
    store.results[CELL].least_makespans[NONE] = 0.5 * known
    store.add(store.results[CELL])
    return store.path, known


def least_in(path):
    return Store.load(path).results[CELL].least_makespans[NONE]


def test_the_order_of_a_cell_is_made_again(file, capsys):
    path, known = file
    assert least_makespan.main([CELL, "--variants", NONE, "--json", str(path)]) == 0
    assert least_in(path) == pytest.approx(known), "in one piece the bound is what it was"
    assert f"{CELL} none: " in capsys.readouterr().out


def test_another_order_changes_nothing(file, capsys, monkeypatch):
    path, known = file
    stored = json.loads(json.dumps(Store.load(path).results[CELL].estimates[NONE]))
    stored[0]["after"]["peak_bytes"] += 4096
    monkeypatch.setattr(least_makespan, "scheduled", lambda *_: ([], stored))
    assert least_makespan.main([CELL, "--variants", NONE, "--json", str(path)]) == 1
    assert least_in(path) == 0.5 * known
    assert "another order: inference peak_bytes: " in capsys.readouterr().out


def test_a_cell_that_was_not_measured_is_wrong_usage(file, capsys):
    path, _ = file
    assert least_makespan.main(["qwen3_moe/decode/balanced/4/2", "--json", str(path)]) == 2
    assert "qwen3_moe/decode/balanced/4/2" in capsys.readouterr().err


def test_schedules_are_told_apart_by_their_graphs_and_figures():
    one = {"phase": "forward", "after": {"seconds": 1.0, "communication_seconds": 0.5, "peak_bytes": 10}}
    other = {"phase": "forward", "after": {**one["after"], "communication_seconds": 0.6}}
    assert least_makespan.differences([one], [one]) == []
    assert least_makespan.differences([one], [other]) == ["forward communication_seconds: 0.5, 0.6 in the file"]
    assert least_makespan.differences([one], []) == ["1 graphs, 0 in the file"]
