# SPDX-License-Identifier: Apache-2.0
"""`farskip overlap`: exit statuses, text, JSON, and the files that it writes."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from farskip_compile.cli import app
from tests.profiling.traces import gloo, op, write


def run(*args, columns=80):
    return CliRunner().invoke(app, ["overlap", *map(str, args)], env={"COLUMNS": str(columns)})


@pytest.fixture
def traces(tmp_path):
    events = [gloo("all_reduce", 0, 40), op("aten::mm", 10, 20)]
    return [write(tmp_path / f"rank{rank}.json", events, rank, world_size=2) for rank in (0, 1)]


def test_text_page_and_merged_trace(traces, tmp_path):
    page, merged = tmp_path / "page.html", tmp_path / "merged.json"
    result = run(*traces, "--html", page, "--merge", merged)
    assert result.exit_code == 0, result.output
    assert "25.0% of communication hidden: 30.0 us of 40.0 us a rank exposed (CPU, 2 ranks)" in result.stdout
    assert page.read_text().startswith("<!doctype html>")
    assert json.loads(merged.read_text())["farskipRanks"] == [0, 1]
    assert result.stdout.startswith(run(merged).stdout), "the same report, without the files"
    again = run(merged, "--merge", tmp_path / "again.json", columns=200)
    assert again.exit_code == 2
    assert "already merged" in again.stderr


def test_json(traces):
    result = run(*traces, "--json", "--subtract-peer-wait")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["refusal"] is None
    assert found["peer_wait_subtracted"] is True
    assert [rank["exposed_ns"] for rank in found["ranks"]] == [30_000, 30_000]


@pytest.mark.parametrize("as_json", [False, True])
def test_no_collectives(tmp_path, as_json):
    path = write(tmp_path / "alone.json", [op("aten::mm", 10, 20)])
    result = run(path, *(["--json"] if as_json else []), columns=200)
    assert result.exit_code == 1
    if as_json:
        assert json.loads(result.stdout)["refusal"]["error"] == "NoCollectivesError"
    else:
        assert not result.stdout
        assert "there is no collective in" in result.stderr


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        (lambda path: path.write_text(path.read_text()[:-9]), [], "ends in the middle"),
        (lambda path: path.write_text("hello"), [], "is not JSON"),
        (lambda path: path.unlink(), [], "No such file or directory"),
        (lambda path: None, ["--subtract-peer-wait"], "there is no trace of rank 1"),
        (lambda path: None, ["--html", "{folder}/none/page.html"], "can't write"),
        (lambda path: None, ["--html", "{folder}/rank0.json"], "is one of the traces"),
        (lambda path: None, ["--merge", "{folder}/rank0.json"], "is one of the traces"),
    ],
)
def test_wrong_usage(traces, tmp_path, change, options, says):
    change(traces[0])
    result = run(traces[0], *(option.format(folder=tmp_path) for option in options), columns=300)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert not result.stdout
    assert "Traceback" not in result.output
