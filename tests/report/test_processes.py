# SPDX-License-Identifier: Apache-2.0
"""The files that processes leave for `farskip status`: none by default, small, whole; and what they say together."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import farskip_compile
from farskip_compile.errors import ConfigError, DenseModelError
from farskip_compile.models import build
from farskip_compile.report import process_file
from farskip_compile.report.compile import CompileReport, Outcome
from farskip_compile.report.processes import REFUSED, REWIRED, SILENT, VARIABLE, folder_of, read_folder, started

IDS = torch.arange(8).view(1, 8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this process writes, with nothing written before."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "status"))
    monkeypatch.setattr(process_file, "_lines", {})
    return tmp_path / "status"


def model_of(*layers: Any) -> Any:
    model = build("mixtral", vocab_size=16, hidden_size=32, layers=layers or ("moe", "moe"))
    model.compile(backend="farskip", options={"inner": "eager"})
    return model


def test_nothing_is_written_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    model_of()(IDS)
    assert list(tmp_path.iterdir()) == []


def test_what_this_process_leaves(folder: Path) -> None:
    model_of()(IDS)
    regional = build("mixtral", vocab_size=16, hidden_size=32, layers=("moe", "moe", "moe"))
    farskip_compile.regional(regional, inner="eager")
    regional(IDS)
    (file,) = folder.iterdir()
    assert file.name == f"{platform.node()}-{os.getpid()}.jsonl"
    assert file.stat().st_size < 8192
    found = read_folder(folder)
    (process,) = found.processes
    assert (process.pid, process.alive, process.answer, found.rewired) == (os.getpid(), True, "rewired", True)
    graph, *parts, whole = process.compiled
    assert (graph.kind, graph.model, graph.outcome, graph.ran) == ("graph", "Decoder", "rewired", True)
    assert (graph.rows_rewired, graph.rows_asked, graph.rows, whole.rows_rewired) == (3, 3, 4, 5)
    assert None not in (graph.first_run_seconds, graph.compile_seconds)
    assert ({one.kind for one in parts}, whole.kind, len(process.models)) == ({"part"}, "layers", 1)
    with pytest.raises(DenseModelError):
        model_of("dense")(IDS)
    (process,) = read_folder(folder).processes
    assert (process.answer, process.errors[-1].error) == ("NOT REWIRED", "DenseModelError")
    model_of()(IDS[:, :7])
    assert read_folder(folder).rewired, "after the error, a model was compiled"


def test_a_folder_that_can_not_be_written_is_no_error_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file"))
    monkeypatch.setattr(process_file, "_warned", False)
    model_of()(IDS)
    assert caplog.text.count("will not see this process") == 1


def test_an_error_that_comes_again_is_the_last_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the oldest lines go, and its id is that of an earlier one."""
    monkeypatch.setattr(process_file, "MOST", 2)
    report = CompileReport(Outcome.NO_STACK, nodes=1, config={})
    error = DenseModelError("the same")
    for again in range(3):
        with pytest.raises(DenseModelError), process_file.errors_noted():
            raise error
        if again < 2:
            process_file.note_report(report)
    (process,) = read_folder(folder).processes
    assert process.error_is_last
    assert process.answer == "NOT REWIRED"


def test_outcomes_are_those_of_reports() -> None:
    assert REWIRED == (Outcome.REWIRED, Outcome.ALREADY)
    assert (REFUSED, SILENT) == (Outcome.REFUSED, (Outcome.NO_STACK, Outcome.FRAGMENT))


GRAPH = {
    **{"kind": "graph", "model": "Decoder", "outcome": "rewired", "connectivity": "full", "rows_rewired": 3},
    **{"rows_asked": 3, "rows": 4, "left_out": ["moe leaves out the attention of its own layer"], "manifest": None},
    **{"overlap": [], "reason": "", "compile_id": "0/0", "compile_seconds": 2.0, "first_run_seconds": 0.5},
    **{"ended_by": "", "ran": True},
}


def leave(folder: Path, rank: int = 0, ranks: int = 1, *lines: Any, pid: int = 0, **more: Any) -> None:
    """A file as a process writes it."""
    pid = pid or 100000000 + rank
    head = {
        **{"schema": 1, "kind": "process", "host": platform.node(), "pid": pid, "parent": 1, "started": "7"},
        **{"rank": rank, "ranks": ranks, "job": "", "command": "train.py", "written": 1.0},
    }
    text = "".join(f"{json.dumps(line)}\n" for line in (head | more, *lines))
    (folder / f"{more.get('host', 'here')}-{pid}.jsonl").write_text(text)


@pytest.mark.parametrize(
    ("lines", "answer"),
    [
        ([GRAPH], "rewired"),
        ([{**GRAPH, "ran": None}], "rewired"),
        ([{**GRAPH, "ran": False}], "unknown"),
        ([], "unknown"),
        ([{**GRAPH, "kind": "part"}], "unknown"),
        ([{**GRAPH, "outcome": "no residual stack"}], "unknown"),
        ([{**GRAPH, "outcome": "unchanged as asked"}], "NOT REWIRED"),
        ([GRAPH, {**GRAPH, "outcome": "unchanged as asked"}], "NOT REWIRED"),
        ([GRAPH, {**GRAPH, "model": "Teacher", "outcome": "unchanged as asked"}], "rewired"),
        ([GRAPH, {**GRAPH, "outcome": "refused, compiled unchanged"}], "NOT REWIRED"),
        ([GRAPH, {"kind": "error", "error": "NotASumError", "reason": "no"}], "NOT REWIRED"),
        ([{"kind": "error", "error": "NotASumError", "reason": "no"}, GRAPH], "rewired"),
    ],
)
def test_the_answer_of_a_process(tmp_path: Path, lines: list[Any], answer: str) -> None:
    leave(tmp_path, 0, 1, *lines)
    found = read_folder(tmp_path)
    assert ([one.answer for one in found.processes], found.rewired) == ([answer], answer == "rewired")


def test_ranks_that_differ_or_are_missing(tmp_path: Path) -> None:
    leave(tmp_path, 0, 3, GRAPH)
    leave(tmp_path, 1, 3, {**GRAPH, "rows_rewired": 2})
    found = read_folder(tmp_path)
    differs, missing = found.problems
    assert differs.startswith("rank 1 differs from rank 0: Decoder rewired, 2 of 4 rows")
    assert missing.startswith("rank 2 of 3 left no file")
    assert not found.rewired
    leave(tmp_path, 1, 3, GRAPH)
    leave(tmp_path, 2, 3, {**GRAPH, "first_run_seconds": 9.0})
    assert read_folder(tmp_path).rewired


def test_restarted_processes_do_not_count(tmp_path: Path) -> None:
    leave(tmp_path, 0, 1, {**GRAPH, "outcome": "unchanged as asked"}, pid=100000001, written=1.0)
    leave(tmp_path, 0, 1, GRAPH, pid=100000002, written=2.0)
    found = read_folder(tmp_path)
    assert ([one.pid for one in found.processes], found.earlier, found.rewired) == ([100000002], 1, True)
    here = os.getpid()
    leave(tmp_path, 0, 1, GRAPH, pid=here, started=started(here), written=0.5)
    leave(tmp_path, 0, 1, GRAPH, host="elsewhere", pid=5, written=9.0)
    found = read_folder(tmp_path)
    assert ([(one.pid, one.alive) for one in found.processes], found.earlier) == ([(here, True)], 3)


def test_processes_are_found_by_number(tmp_path: Path) -> None:
    environment = {**os.environ, VARIABLE: "status"}
    wait = [sys.executable, "-c", "input()"]
    with subprocess.Popen(wait, env=environment, cwd=tmp_path, stdin=subprocess.PIPE) as process:
        (tmp_path / "status").mkdir()
        leave(tmp_path / "status", 0, 2, GRAPH, pid=process.pid, started=started(process.pid), parent=77)
        leave(tmp_path / "status", 1, 2, GRAPH, parent=77)
        leave(tmp_path / "status", 0, 2, GRAPH, pid=100000005, job="other", parent=78)
        folder = folder_of(process.pid)
        assert folder == tmp_path / "status"
        for number in (process.pid, 77):
            found = read_folder(folder, number)
            assert ([one.rank for one in found.processes], found.rewired) == ([0, 1], True)
        assert [one.alive for one in found.processes] == [True, False]
        assert process.stdin is not None
        process.stdin.close()
    with pytest.raises(ConfigError, match="can't be asked"):
        folder_of(process.pid)


def test_a_process_without_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    with subprocess.Popen(["sleep", "60"], env=environment) as process:
        try:
            with pytest.raises(ConfigError, match="was started without FARSKIP_STATUS_DIR") as error:
                folder_of(process.pid)
            assert VARIABLE in error.value.way_out
        finally:
            process.kill()


@pytest.mark.parametrize("text", ["", "{", "[]\n", '{"schema": 1, "pid": "x"}\n'])
def test_damaged_files_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "vm-1.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=r"vm-1\.jsonl"):
        read_folder(tmp_path)


def test_files_of_another_version_are_named(tmp_path: Path) -> None:
    leave(tmp_path, 0, 1, GRAPH, schema=2)
    with pytest.raises(ConfigError, match=r"here-100000000\.jsonl: schema is 2"):
        read_folder(tmp_path)
