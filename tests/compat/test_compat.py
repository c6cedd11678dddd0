# SPDX-License-Identifier: Apache-2.0
"""How `make compat` reads what tests and pip say, and what it writes. No environment is built here."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compat import __main__ as command
from tests.compat.build import ROOT, Built, NotAvailable, NotBuilt, refusal
from tests.compat.defects import Defect, confirmed
from tests.compat.environments import ENVIRONMENTS, PRIVATE, Environment
from tests.compat.outcome import (
    FAILED,
    MISSING,
    NEVER,
    NOT_BUILT,
    PASSED,
    UNAVAILABLE,
    UNFINISHED,
    Outcome,
    Tally,
    missing_names,
    outcome,
    tally,
)
from tests.compat.page import BEGIN, END, cells, load, merge, result, save, table, with_table

CASE = '<testcase classname="tests.test_a" name="{name}" time="0.5">{inside}</testcase>'
VERSIONS = {"python": "3.11.7", "torch": "2.11.0"}


def report(path: Path, *cases: tuple[str, str], seconds: float = 2.5) -> Path:
    inside = "".join(CASE.format(name=name, inside=text) for name, text in cases)
    path.write_text(f'<testsuites><testsuite name="pytest" time="{seconds}">{inside}</testsuite></testsuites>')
    return path


FAILURE = '<failure message="assert 1 == 2">text</failure>'
ERROR = '<error message="at teardown">text</error>'
SKIPPED = '<skipped type="pytest.skip" message="no transformers"/>'


def test_a_report_is_counted(tmp_path: Path):
    cases = [("a", ""), ("b", FAILURE), ("c", SKIPPED), ("d", ERROR), ("e", "")]
    found = tally(report(tmp_path / "r.xml", *cases))
    assert found == Tally(
        2, 2, 1, 2.5, {"tests.test_a.b": "assert 1 == 2\ntext", "tests.test_a.d": "at teardown\ntext"}
    )


def test_a_test_that_fails_twice_counts_once(tmp_path: Path):
    """Pytest writes a second case for a clean-up that fails."""
    found = tally(report(tmp_path / "r.xml", ("a", FAILURE), ("a", ERROR), ("b", "")))
    assert (found.passed, found.failed) == (1, 1)
    assert "assert 1 == 2" in found.failures["tests.test_a.a"]
    assert "at teardown" in found.failures["tests.test_a.a"]


@pytest.mark.parametrize("text", ["", "<testsuites><testsuite", None])
def test_half_a_report_is_none(tmp_path: Path, text: str | None):
    if text is not None:
        (tmp_path / "r.xml").write_text(text)
    assert tally(tmp_path / "r.xml") is None


def test_what_pytest_itself_writes_is_understood(tmp_path: Path):
    """A real report, of a real run, of a test like the one of the private names."""
    (tmp_path / "test_x.py").write_text(
        "import pytest\n"
        "def test_names():\n"
        "    assert not [1], 'torch lacks:\\nmissing: torch._a.b (c.py:3)\\nmissing: torch._d:e (f.py:4)'\n"
        "def test_good(): pass\n"
        "def test_skipped(): pytest.skip('why')\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        "-c",
        os.devnull,
    ]
    subprocess.run(
        [*command, f"--junitxml={tmp_path / 'r.xml'}", str(tmp_path / "test_x.py")],
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    found = tally(tmp_path / "r.xml")
    assert (found.passed, found.failed, found.skipped) == (1, 1, 1)
    assert missing_names(found) == ["torch._a.b (c.py:3)", "torch._d:e (f.py:4)"]


GOOD = Tally(9, 0, 0, 1.0, {})


@pytest.mark.parametrize(
    ("private", "core", "status", "figures"),
    [
        (GOOD, Tally(90, 0, 2, 99.0, {}), PASSED, (99, 0, 2, 100.0)),
        (GOOD, Tally(90, 1, 2, 99.0, {"tests.x": "m"}), FAILED, (99, 1, 2, 100.0)),
        (GOOD, Tally(0, 0, 5, 1.0, {}), FAILED, (9, 0, 5, 2.0)),  # nothing ran
        (GOOD, None, UNFINISHED, (9, 0, 0, 1.0)),
        (None, None, UNFINISHED, (0, 0, 0, 0.0)),
        (Tally(8, 1, 0, 1.0, {"tests.p": "E  missing: torch._x (y.py:1)"}), None, MISSING, (8, 1, 0, 1.0)),
        (Tally(8, 1, 0, 1.0, {"tests.p": "another failure"}), None, FAILED, (8, 1, 0, 1.0)),
    ],
)
def test_the_outcome_of_two_reports(private: Tally | None, core: Tally | None, status: str, figures: tuple):
    found = outcome("torch-2.11", "2026-11-26", VERSIONS, private, core)
    assert found.status == status
    assert (found.passed, found.failed, found.skipped, found.seconds) == figures
    assert Outcome.from_json(json.loads(json.dumps(found.to_json()))) == found


DEFECT = Defect(("2.11",), "not today", "it does not work on a Thursday", "raise SystemExit('not today')")


def test_what_fails_for_a_defect_of_torch_is_no_failure_of_ours():
    core = Tally(90, 2, 0, 9.0, {"tests.a": "RuntimeError: not today, sorry", "tests.b": "assert 1 == 2"})
    found = outcome("torch-2.11", "2026-11-26", VERSIONS, GOOD, core, [DEFECT])
    assert (found.status, found.failed, found.failures, found.excused) == (FAILED, 1, ["tests.b"], ["tests.a"])
    only = Tally(90, 1, 0, 9.0, {"tests.a": "RuntimeError: not today, sorry"})
    found = outcome("torch-2.11", "2026-11-26", VERSIONS, GOOD, only, [DEFECT])
    assert (found.status, found.failed, found.excused) == (PASSED, 0, ["tests.a"])
    assert outcome("torch-2.11", "2026-11-26", VERSIONS, GOOD, only).status == FAILED
    head, row, note = table([found]).splitlines()[0], *table([found]).splitlines()[2::2]
    assert "99 passed, 1 fail for a defect of this torch [1]" in row
    assert note == "[1] it does not work on a Thursday."
    assert head.startswith("| environment")


def test_a_defect_has_to_show_itself():
    here = Path(sys.executable)
    assert confirmed(here, "2.11.0", [DEFECT]) == [DEFECT]
    assert confirmed(here, "2.13.0", [DEFECT]) == []
    assert confirmed(here, "2.11.0", [dataclasses.replace(DEFECT, program="raise SystemExit('another')")]) == []
    assert confirmed(here, "2.11.0", [dataclasses.replace(DEFECT, program="print('not today')")]) == []


def test_pip_tells_what_is_not_there_from_what_went_wrong():
    absent = refusal(
        "ERROR: Could not find a version that satisfies the requirement torch==2.14.* (from versions: 2.11.0)\n"
        "ERROR: No matching distribution found for torch==2.14.*\n"
    )
    assert isinstance(absent, NotAvailable)
    assert str(absent) == "No matching distribution found for torch==2.14.*"
    broken = refusal("WARNING: retrying\nERROR: Could not install packages due to an OSError: no space left\n")
    assert type(broken) is NotBuilt
    assert "no space left" in str(broken)
    assert type(refusal("")) is NotBuilt


ROWS = [
    Outcome("torch-2.11", PASSED, "2026-11-26", VERSIONS, 99, 0, 2, 200.4),
    Outcome("torch-2.12", FAILED, "2026-11-26", {"torch": "2.12.1"}, 90, 9, 0, 180.0, ["tests.x"]),
    Outcome("torch-2.13", MISSING, "2026-11-25", {"torch": "2.13.0"}, 8, 1, 0, 3.0, ["torch._x.y (z.py:1)"]),
    Outcome("torch-2.14", UNAVAILABLE, "2026-11-26", reason="No matching distribution found"),
    Outcome("torch-2.15", NOT_BUILT, "2026-11-26", reason="no space left"),
    Outcome("transformers-5.20", NEVER, ""),
]


def test_the_table_says_for_each_row_what_came_of_it():
    assert table(ROWS).splitlines() == [
        "| environment | torch | transformers | core tests | seconds | date |",
        "| --- | --- | --- | --- | --- | --- |",
        "| torch-2.11 | 2.11.0 | - | 99 passed, 2 skipped | 200 | 2026-11-26 |",
        "| torch-2.12 | 2.12.1 | - | **9 failed**, 90 passed | 180 | 2026-11-26 |",
        "| torch-2.13 | 2.13.0 | - | private API missing: `torch._x.y` | 3 | 2026-11-25 |",
        "| torch-2.14 | - | - | not available on the index | - | 2026-11-26 |",
        "| torch-2.15 | - | - | could not be installed: no space left | - | 2026-11-26 |",
        "| transformers-5.20 | - | - | never tried | - | - |",
    ]
    assert len(cells(ROWS[0])) == 6


def test_only_what_stands_between_the_markers_is_written():
    page = f"# Title\n\nbefore\n{BEGIN}\nold table\n{END}\nafter {{}} \\1\n"
    written = with_table(page, ROWS)
    assert written.startswith("# Title\n\nbefore\n" + BEGIN + "\n| environment")
    assert written.endswith(END + "\nafter {} \\1\n")
    assert "old table" not in written
    assert with_table(written, ROWS) == written


@pytest.mark.parametrize("page", ["no markers", BEGIN, f"{END} {BEGIN}", f"{BEGIN}{END}{BEGIN}"])
def test_a_page_without_markers_is_left_alone(page: str):
    with pytest.raises(ValueError, match="needs one line"):
        with_table(page, ROWS)


def test_other_rows_keep_their_date(tmp_path: Path):
    path = tmp_path / "compat.json"
    assert load(path) == []
    save(path, ROWS[:2])
    new = Outcome("torch-2.12", PASSED, "2026-12-01", {"torch": "2.12.1"}, 99)
    rows = merge(
        [Environment(name, "torch", "") for name in ("torch-2.11", "torch-2.12", "torch-9")], load(path), [new]
    )
    assert [(row.name, row.status, row.date) for row in rows] == [
        ("torch-2.11", PASSED, "2026-11-26"),
        ("torch-2.12", PASSED, "2026-12-01"),
        ("torch-9", NEVER, ""),
    ]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The command writes here."""
    monkeypatch.setattr(command, "FOLDER", tmp_path / ".compat")
    monkeypatch.setattr(command, "RESULTS", tmp_path / "compat.json")
    monkeypatch.setattr(command, "PAGE", tmp_path / "compat.md")
    (tmp_path / "compat.md").write_text(f"{BEGIN}\n{END}\n")
    return tmp_path


def test_a_row_that_fails_stops_no_other_and_sets_the_exit_status(elsewhere: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, str]] = []

    def build(environment: Environment, folder: Path) -> Built:
        folder.mkdir()
        if environment.name == "torch-2.14":
            raise NotAvailable("No matching distribution found for torch==2.14.*")
        if environment.name == "torch-2.15":
            raise NotBuilt("no space left")
        return Built(folder / environment.name, {"torch": environment.name.removeprefix("torch-")})

    def run(python: Path, tests: tuple[str, ...], report: Path, workers: int) -> Tally | None:
        asked.append((python.name, tests[0]))
        if python.name == "torch-2.11" and tests[0] == PRIVATE:
            return Tally(8, 1, 0, 1.0, {"tests.p": "missing: torch._x (y.py:1)"})
        return None if python.name == "torch-2.12" and tests[0] != PRIVATE else GOOD

    monkeypatch.setattr(command, "build", build)
    monkeypatch.setattr(command, "run", run)
    assert command.main([]) == 1
    found = {row.name: row.status for row in load(elsewhere / "compat.json")}
    assert found == {
        "torch-2.11": MISSING,
        "torch-2.12": UNFINISHED,
        "torch-2.13": PASSED,
        "torch-2.14": UNAVAILABLE,
        "torch-2.15": NOT_BUILT,
        "transformers-5.20": PASSED,
        "transformers-newest": PASSED,
        "transformers-4": PASSED,
        "vllm-0.31": PASSED,
        "vllm-0.32": PASSED,
        "vllm-0.33": PASSED,
        "vllm-0.34": PASSED,
    }
    assert [tests for name, tests in asked if name == "torch-2.11"] == [PRIVATE]  # the others would only fail, too
    assert "`torch._x`" in (elsewhere / "compat.md").read_text()
    assert [one.name for one in (elsewhere / ".compat").iterdir()] == ["reports"]  # whatever came of them
    assert command.main(["--only", "torch-2.13", "--keep"]) == 0
    assert sorted(one.name for one in (elsewhere / ".compat").iterdir()) == ["reports", "torch-2.13"]
    assert {row.name: row.status for row in load(elsewhere / "compat.json")} == found


def test_what_is_asked_of_an_environment_is_there():
    assert len({one.name for one in ENVIRONMENTS}) == len(ENVIRONMENTS)
    assert [path for one in ENVIRONMENTS for path in (*one.tests, PRIVATE) if not (ROOT / path).exists()] == []


def test_the_page_has_the_table_that_was_written_last():
    rows = merge(ENVIRONMENTS, load(ROOT / "docs" / "compat.json"), [])
    text = (ROOT / "docs" / "compat.md").read_text()
    assert with_table(text, rows) == text
    assert all(result(row) in text for row in rows)
