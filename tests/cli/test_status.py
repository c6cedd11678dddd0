# SPDX-License-Identifier: Apache-2.0
"""`farskip status`: what processes have left in a folder, for people and as JSON, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from farskip_compile.cli import app
from tests.report.test_folder_status import ERROR, GRAPH, PLAIN, REFUSAL, STOPPED, leave

OVERLAP = {"phase": "forward", "hidden": 0.634, "communication_seconds": 1.0, "exposed_seconds": 0.366}
WITH_OVERLAP = {**GRAPH, "overlap": [{**OVERLAP, "profile": "h100"}], "manifest": "0123456789abcdef"}


def shown(*args: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["status", *args], env={"COLUMNS": "80"})
    return done.exit_code, done.output


def test_ranks_that_are_alike_are_shown_together(tmp_path: Path) -> None:
    for rank, seconds in enumerate((0.5, 0.75, 0.6)):
        leave(tmp_path, rank, 3, {**WITH_OVERLAP, "first_run_seconds": seconds})
    status, text = shown(str(tmp_path))
    assert status == 0
    lines = text.splitlines()
    assert lines[:2] == ["ranks 0 to 2 of 3, 3 processes on node1, alive: REWIRED", "  train.py"]
    assert lines[2:] == [
        "  Decoder: rewired, 3 of 3 rows asked for (4 in all)",
        "    moe leaves out the attention of its own layer",
        "    expected overlap: 63 % of the forward communication (h100)",
        "    compiled in 2 s, first step 0.5 to 0.75 s; manifest 0123456789ab checked",
        "Rewired: 3 of 3.",
    ]


def test_ranks_that_differ_are_an_error(tmp_path: Path) -> None:
    leave(tmp_path, 0, 2, GRAPH)
    leave(tmp_path, 1, 2, {**REFUSAL, "reason": "not a sum\nwhere"})
    status, text = shown(str(tmp_path))
    assert status == 1
    assert "rank 1 of 2, process" in text
    assert "refused, compiled unchanged, 4 rows: not a sum\n" in text
    assert "error: rank 1 differs from rank 0" in " ".join(text.split())
    assert text.splitlines()[-1] == "Rewired: 1 of 2."


def test_row_by_row(tmp_path: Path) -> None:
    leave(tmp_path, 0, 1, {**GRAPH, "rows_rewired": 1, "rows_missing": ["attention.2", "moe.3"]}, STOPPED)
    status, text = shown(str(tmp_path))
    assert status == 1
    assert (
        "  Decoder: rewired in part, 1 of 3 rows asked for (4 in all)\n    not as asked: attention.2, moe.3\n" in text
    )
    assert "  NotASumError: no\n" in text


def test_each_exit_status(tmp_path: Path) -> None:
    status, text = shown(str(tmp_path))
    assert (status, "No process has written anything there" in text) == (2, True)
    leave(tmp_path, 0, 1, {**GRAPH, "ran": False, "first_run_seconds": None})
    status, text = shown(str(tmp_path))
    assert (status, "has not run yet" in text, "UNKNOWN" in text) == (1, True, True)
    leave(tmp_path, 0, 1, GRAPH, alive=False)
    status, text = shown(str(tmp_path))
    assert status == 2
    assert "process 100 on node1, no sign of life for 1 hour: was REWIRED" in text
    assert text.splitlines()[-1] == "Nothing is known to run there."
    leave(tmp_path, 0, 1, GRAPH)
    (tmp_path / "torn.jsonl").write_text("{")
    status, text = shown(str(tmp_path))
    assert (status, "error: can't read torn.jsonl: it is damaged" in text) == (2, True)


@pytest.mark.parametrize("columns", ["80", "120"])
def test_files_of_any_content_leave_a_page_that_can_be_read(tmp_path: Path, columns: str) -> None:
    """Long names, empty reasons, thousands of models and of groups: bounded, at each width."""
    long = {**OVERLAP, "phase": "p" * 5000, "hidden": 1e300, "profile": "h" * 5000}
    mad = {**GRAPH, "model": "M" * 5000, "reason": "r" * 5000, "left_out": ["l" * 500] * 99, "overlap": [long] * 2}
    models = [{**mad, "owner": number} for number in range(20)]
    leave(tmp_path, 0, 1, *models, {**ERROR, "reason": "", "error": "E" * 5000}, host="n" * 200, command="c" * 5000)
    for number in range(60):
        leave(tmp_path, 0, 1, GRAPH, pid=1000 + number, job=f"job{number}")
    done = CliRunner().invoke(app, ["status", str(tmp_path)], env={"COLUMNS": columns})
    assert done.exit_code == 1
    assert done.exception is None or isinstance(done.exception, SystemExit)
    assert len(done.output) < 400_000
    assert max(map(len, done.output.splitlines())) <= int(columns)


@pytest.mark.parametrize("where", ["nowhere", "999999999"])
def test_wrong_usage(tmp_path: Path, where: str) -> None:
    status, text = shown(str(tmp_path / where) if where == "nowhere" else where)
    assert (status, "ConfigError" in text) == (2, True)


def test_names_of_others_do_nothing_to_a_terminal(tmp_path: Path) -> None:
    leave(tmp_path, 0, 1, {**GRAPH, "model": "[red]M\x1b[2J"}, command="a\x1b]0;b")
    _, text = shown(str(tmp_path))
    assert "\x1b" not in text
    assert "[red]M\\x1b[2J: rewired" in text


def test_json_is_alone_on_stdout(tmp_path: Path) -> None:
    leave(tmp_path, 0, 1, {**PLAIN, "overlap": WITH_OVERLAP["overlap"]})
    done = CliRunner().invoke(app, ["status", str(tmp_path), "--json"])
    said = json.loads(done.stdout)
    assert (done.exit_code, said["rewired"]) == (1, False)
    assert said["processes"][0]["answer"] == "NOT REWIRED"
    assert said["processes"][0]["models"][0]["outcome"] == "unchanged as asked"
    assert said["processes"][0]["compiled"][0]["overlap"][0]["hidden"] == OVERLAP["hidden"]
    assert done.stderr == ""
