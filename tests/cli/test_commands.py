# SPDX-License-Identifier: Apache-2.0
"""Real commands in processes of their own: what models print, how they are stopped, and who reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.terminals import FARSKIP, in_terminal, read_a_line_and_leave, with_pipes
from tests.profiling.traces import gloo, op, write

MODEL = "tests.cli.chatty_models:chatty"


@pytest.mark.parametrize("args", [["explain", MODEL, "--json"], ["explain", MODEL, "--manifest", "-"]], ids=" ".join)
def test_what_a_model_prints_is_not_in_the_json(args: list[str]) -> None:
    done = with_pipes([*FARSKIP, *args])
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), dict)
    assert "building my model" in done.stderr
    assert "and so does C++" in done.stderr


def test_without_json_it_is_where_the_model_put_it() -> None:
    done = with_pipes([*FARSKIP, "explain", MODEL])
    assert done.returncode == 0, done.stderr
    assert "building my model" in done.stdout


@pytest.mark.parametrize("more", [[], ["--json"]], ids=" ".join)
def test_ctrl_c_while_a_model_is_built(more: list[str]) -> None:
    found = in_terminal([*FARSKIP, "explain", "tests.cli.chatty_models:slow", *more], stop_at="building slowly")
    assert found.status == 130, found.text
    assert [line for line in found.text.splitlines() if line.strip()][-1] == "Stopped."
    assert "Traceback" not in found.text


@pytest.mark.parametrize("more", [["--json"], ["--all"]], ids=" ".join)
def test_a_report_whose_reader_leaves(more: list[str], tmp_path: Path) -> None:
    many = [gloo("all_reduce", 10 * n, 10 * n + 5) for n in range(5000)]  # lines for more than a pipe holds
    events = [*many, op("aten::mm", 0, 10)]
    line, errors, status = read_a_line_and_leave([*FARSKIP, "overlap", str(write(tmp_path / "0.json", events)), *more])
    assert line.strip()
    assert (errors, status) == ("", 1)


def test_a_report_is_whole_and_progress_is_on_stderr(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"rank{rank}.json", [gloo("all_reduce", 0, 40)], rank) for rank in (0, 1)]
    done = with_pipes([*FARSKIP, "overlap", *map(str, paths), "--json"])
    assert done.returncode == 0
    assert len(json.loads(done.stdout)["ranks"]) == 2
    assert done.stderr == "reading 2 of 2: rank1.json\n"
    found = in_terminal([*FARSKIP, "overlap", *map(str, paths)])
    assert found.status == 0
    assert "of communication hidden" in found.text
    assert "\x1b[?25h" in found.raw.rpartition("\x1b[?25l")[2]
