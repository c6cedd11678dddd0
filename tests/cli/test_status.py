# SPDX-License-Identifier: Apache-2.0
"""`farskip status`: what processes have left in a folder, for people and as JSON, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from farskip_compile.cli import app
from tests.report.test_processes import GRAPH, leave

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
    assert lines[0].startswith("ranks 0, 1, 2 of 3, 3 processes on ")
    assert lines[0].endswith("ended: rewired")
    assert lines[2:] == [
        "  Decoder: rewired, 3 of 3 rows asked for (4 in all)",
        "    moe leaves out the attention of its own layer",
        "    expected overlap: 63 % of the forward communication (h100)",
        "    compiled in 2 s, first step 0.5 to 0.75 s; manifest 0123456789ab checked",
        "Rewired: 3 of 3.",
    ]


def test_ranks_that_differ_are_an_error(tmp_path: Path) -> None:
    leave(tmp_path, 0, 2, GRAPH)
    leave(
        tmp_path, 1, 2, {**GRAPH, "outcome": "refused, compiled unchanged", "reason": "not a sum", "rows_asked": None}
    )
    status, text = shown(str(tmp_path))
    assert status == 1
    assert "rank 1 of 2, process" in text
    assert "refused, compiled unchanged, 4 rows: not a sum" in text
    assert "error: rank 1 differs from rank 0" in " ".join(text.split())
    assert text.splitlines()[-1] == "Rewired: 1 of 2."


def test_what_can_not_be_told_is_not_a_yes(tmp_path: Path) -> None:
    status, text = shown(str(tmp_path))
    assert (status, "No process has written anything there" in text) == (1, True)
    leave(tmp_path, 0, 1, {**GRAPH, "ran": False, "first_run_seconds": None})
    status, text = shown(str(tmp_path))
    assert (status, "has not run yet" in text, "unknown" in text) == (1, True, True)


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
    leave(tmp_path, 0, 1, {**WITH_OVERLAP, "outcome": "unchanged as asked"})
    done = CliRunner().invoke(app, ["status", str(tmp_path), "--json"])
    said = json.loads(done.stdout)
    assert (done.exit_code, said["rewired"]) == (1, False)
    assert said["processes"][0]["answer"] == "NOT REWIRED"
    assert said["processes"][0]["compiled"][0]["overlap"][0]["hidden"] == OVERLAP["hidden"]
    assert done.stderr == ""
