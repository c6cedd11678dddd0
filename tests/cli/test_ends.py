# SPDX-License-Identifier: Apache-2.0
"""How commands end and what they leave on which stream: JSON alone, Ctrl-C, `| head`, a missing package, progress."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from farskip_compile.cli import progress
from tests.cli.sample_commands import LARGE, app
from tests.cli.terminals import COLOURS, ESCAPES, environment, in_terminal, read_a_line_and_leave, with_pipes

SAMPLE = (sys.executable, "-m", "tests.cli.sample_commands")
SAID = [
    f"{when}: {what}"
    for when in ("before", "after")
    for what in ("print", "the real stdout", "the descriptor", "a process")
]


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


# JSON on stdout alone


def test_json_is_alone_on_stdout_whoever_prints() -> None:
    done = with_pipes([*SAMPLE, "talk", "--json"])
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"answer": 42}
    assert sorted(lines(done.stderr)) == sorted(SAID)


def test_without_json_stdout_is_stdout() -> None:
    done = with_pipes([*SAMPLE, "talk"])
    assert done.stderr == ""
    assert sorted(lines(done.stdout)) == sorted([*SAID, "the answer is 42"])


def test_json_of_a_refusal_and_its_status() -> None:
    done = with_pipes([*SAMPLE, "refuse", "--json"])
    assert (done.returncode, json.loads(done.stdout)) == (1, {"refusal": "no"})
    assert sorted(lines(done.stderr)) == sorted(SAID[:4])


def test_streams_are_as_before_afterwards() -> None:
    """In a process that goes on: this one."""
    runner, before = CliRunner(), (sys.stdout, os.fstat(1).st_ino)
    for _ in range(2):
        done = runner.invoke(app, ["refuse", "--json"])
        assert json.loads(done.stdout) == {"refusal": "no"}
        assert "before: print" in done.stderr
    assert (sys.stdout, os.fstat(1).st_ino) == before
    assert "the answer is 42" in runner.invoke(app, ["talk"]).stdout


# Ctrl-C


@pytest.mark.parametrize(
    "args",
    [
        ["wait"],
        ["wait", "--json"],
        ["wait-with-a-spinner"],
        ["wait-with-a-spinner", "--json"],
        ["ask"],
        ["ask", "--json"],
    ],
    ids=" ".join,
)
def test_ctrl_c_in_a_terminal_is_one_line(args: list[str]) -> None:
    found = in_terminal([*SAMPLE, *args], stop_at="waiting")
    assert found.status == 130
    assert lines(found.text)[-1] == "Stopped."
    assert "Traceback" not in found.text
    assert "KeyboardInterrupt" not in found.text
    assert "Aborted" not in found.text


@pytest.mark.parametrize(
    ("args", "says"), [(["wait"], "Stopped."), (["go-on"], "Stopped. The same command continues.")]
)
def test_sigint_in_a_script_is_one_line(args: list[str], says: str) -> None:
    done = with_pipes([*SAMPLE, *args], stop_at="waiting")
    assert (done.returncode, lines(done.stdout)) == (130, ["waiting", says])


def test_of_the_ranks_of_torchrun_the_first_one_says_it() -> None:
    done = with_pipes([*SAMPLE, "wait"], stop_at="waiting", env=environment(RANK="1"))
    assert (done.returncode, lines(done.stdout)) == (130, ["waiting"])


# | head


@pytest.mark.parametrize("args", [["large", "--json"], ["large"], ["large-text"]], ids=" ".join)
def test_a_reader_that_leaves_is_no_reason_to_complain(args: list[str]) -> None:
    line, errors, status = read_a_line_and_leave([*SAMPLE, *args])
    assert line.strip() in ("{", "0 of many lines")
    assert (errors, status) == ("", 1)


def test_a_reader_that_stays_gets_everything() -> None:
    assert len(json.loads(with_pipes([*SAMPLE, "large", "--json"]).stdout)["numbers"]) == LARGE
    assert len(with_pipes([*SAMPLE, "large"]).stdout.splitlines()) == LARGE


# A package that is missing


def test_a_known_package_that_is_missing_is_one_line() -> None:
    hidden = (
        "import sys, runpy; sys.modules['matplotlib'] = None; sys.argv = ['x', 'load', {!r}]; "
        "runpy.run_module('tests.cli.sample_commands', run_name='__main__')"
    )
    for name in ("matplotlib", "matplotlib.pyplot"):
        done = with_pipes([sys.executable, "-c", hidden.format(name)])
        assert (done.returncode, done.stdout) == (2, "")
        assert lines(done.stderr) == ["this needs matplotlib: pip install 'farskip-compile[plot]'"]


def test_any_other_module_that_is_missing_is_a_defect() -> None:
    done = with_pipes([*SAMPLE, "load", "farskip_compile.no_such_module"])
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr


# Progress


def test_progress_of_a_terminal_is_drawn_and_taken_away() -> None:
    found = in_terminal([*SAMPLE, "steps"])
    assert found.status == 0
    for step in ("silent where nobody looks", "one: [/x] \\x1b[2J", "two", "part a", "part b"):
        assert step in found.text
    assert "\x1b[2J" not in found.raw
    assert "a result\n" in found.text
    assert "\x1b[?25h" in found.raw.rpartition("\x1b[?25l")[2], "the cursor is back"
    plain = in_terminal([*SAMPLE, "steps"], env=environment(NO_COLOR="1", TERM="xterm-256color"))
    assert COLOURS.search(found.raw)
    assert not COLOURS.search(plain.raw)


@pytest.mark.parametrize("how", ["a pipe", "a pipe in CI", "a terminal without a cursor"])
def test_progress_elsewhere_is_a_line_for_a_step(how: str) -> None:
    steps = ["one: [/x] \\x1b[2J", "two", "part a: 2 steps", "part b: 2 steps"]
    if how == "a terminal without a cursor":
        found = in_terminal([*SAMPLE, "steps"], env=environment(TERM="dumb"))
        assert lines(found.text) == [steps[0], "a result", *steps[1:]]
        return
    done = with_pipes([*SAMPLE, "steps"], env=environment(**({"FORCE_COLOR": "1"} if how == "a pipe in CI" else {})))
    assert lines(ESCAPES.sub("", done.stdout)) == ["a result"]
    assert lines(ESCAPES.sub("", done.stderr)) == steps


def test_progress_goes_to_stderr_and_bars_of_others_stay_away() -> None:
    done = with_pipes([*SAMPLE, "steps", "--json"])
    assert json.loads(done.stdout) == {"bars": "1"}
    assert "two" in done.stderr
    read, write = os.pipe()
    try:
        found: Any = in_terminal([*SAMPLE, "steps", "--json"], stdout=write)
    finally:
        os.close(write)
    with os.fdopen(read) as file:
        assert json.load(file) == {"bars": None}, "on a terminal they may draw"
    assert "two" in found.text
    assert "{" not in found.text


def test_a_long_silence_is_broken_where_no_spinner_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the first compile: the step that is not shown at once, then that it goes on, less and less often."""
    monkeypatch.setattr(progress, "UNSHOWN", 0.02)
    monkeypatch.setattr(progress, "SILENT", 0.05)
    threads = threading.active_count()
    with contextlib.redirect_stderr(io.StringIO()) as shown:
        with progress.working("capturing [/x]") as work:
            _wait_for(lambda: shown.getvalue().count("so far") > 1)
            work("a step that shows something")
            work("another")
        quick = shown.getvalue()
        with progress.working("nothing"):
            pass
        with progress.working("nothing", quiet=True):
            time.sleep(0.1)
    assert shown.getvalue() == quick
    first, *others = lines(quick)
    assert first == "capturing [/x]"
    assert others[0] == "capturing [/x]: 0 s so far"
    assert others[-2:] == ["a step that shows something", "another"]
    assert threading.active_count() == threads


def _wait_for(holds: Callable[[], bool]) -> None:
    for _ in range(500):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it never came")
