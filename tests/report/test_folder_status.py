# SPDX-License-Identifier: Apache-2.0
"""The answer of `farskip status` for a folder of files, each from one process.

Class of fault: a yes for a process that does not run, or not with every row; a file that hides another.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from farskip_compile.base.reading.files import DOCUMENT_BYTES
from farskip_compile.errors import ConfigError
from farskip_compile.records import living, processes
from farskip_compile.records.living import Life, place, started
from farskip_compile.records.processes import VARIABLE, FolderStatus, folder_of, read_folder
from tests.report.test_processes import wait_until

GRAPH = {
    **{"kind": "graph", "model": "Decoder", "outcome": "rewired", "connectivity": "full", "rows_rewired": 3},
    **{"rows_asked": 3, "rows": 4, "left_out": ["moe leaves out the attention of its own layer"], "manifest": None},
    **{"overlap": [], "reason": "", "compile_id": "0/0", "compile_seconds": 2.0, "first_run_seconds": 0.5},
    **{"ended_by": "", "ran": True, "rows_missing": []},
}
PLAIN = {**GRAPH, "outcome": "unchanged as asked", "connectivity": "none", "rows_rewired": 0, "rows_asked": 0}
REFUSAL = {**GRAPH, "outcome": "refused, compiled unchanged", "rows_rewired": 0, "rows_asked": None}
ERROR = {"kind": "error", "error": "NotASumError", "reason": "no"}
STOPPED = {**ERROR, "kind": "stopped", "owner": 1}


def leave(folder: Path, rank: int = 0, ranks: int = 1, *lines: Any, alive: bool = True, **more: Any) -> Path:
    """A file as a process writes it: of another host, where it has touched its file just now, or not for an hour."""
    head = {
        **{"schema": 2, "kind": "process", "host": "node1", "place": "elsewhere", "pid": 100 + rank, "parent": 1},
        **{"started": "7", "rank": rank, "ranks": ranks, "job": "", "command": "train.py"},
    } | more
    file = folder / f"{head['host']}-{head['pid']}-{head['place']}.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in (head, *lines)))
    if not alive:
        os.utime(file, (time.time() - 3600,) * 2)
    return file


@pytest.mark.parametrize(
    ("lines", "answer"),
    [
        ([GRAPH], "REWIRED"),
        ([{**GRAPH, "ran": None}], "REWIRED"),
        ([{**GRAPH, "ran": False}], "UNKNOWN"),
        ([], "UNKNOWN"),
        ([{**GRAPH, "kind": "part"}], "UNKNOWN"),
        ([{**GRAPH, "outcome": "no residual stack"}], "UNKNOWN"),
        ([PLAIN], "NOT REWIRED"),
        ([GRAPH, PLAIN], "NOT REWIRED"),
        ([PLAIN, GRAPH], "REWIRED"),  # compiled anew
        ([{**PLAIN, "owner": 1}, {**GRAPH, "owner": 2}], "NOT REWIRED"),
        ([GRAPH, {**PLAIN, "model": "Teacher"}], "NOT REWIRED"),
        ([GRAPH, REFUSAL], "NOT REWIRED"),
        ([REFUSAL, GRAPH], "NOT REWIRED"),
        ([{**GRAPH, "rows_rewired": 2}], "NOT REWIRED"),
        ([{**GRAPH, "rows_asked": None}], "NOT REWIRED"),
        ([{**GRAPH, "rows_rewired": 2}, GRAPH], "NOT REWIRED"),  # two shapes of one model
        ([GRAPH, ERROR], "NOT REWIRED"),
        ([ERROR, GRAPH], "REWIRED"),
        ([{**ERROR, "owner": 1}, {**GRAPH, "owner": 2}], "NOT REWIRED"),
        ([{**GRAPH, "owner": 1}, STOPPED], "NOT REWIRED"),
        ([STOPPED, {**GRAPH, "owner": 1}], "REWIRED"),
        ([STOPPED, {**GRAPH, "owner": 2}], "NOT REWIRED"),
    ],
)
def test_the_answer_for_a_process(tmp_path: Path, lines: list[Any], answer: str) -> None:
    leave(tmp_path, 0, 1, *lines)
    found = read_folder(tmp_path)
    assert ([one.answer for one in found.processes], found.status) == ([answer], int(answer != "REWIRED"))


def test_ranks_that_differ_or_are_missing(tmp_path: Path) -> None:
    leave(tmp_path, 0, 3, GRAPH)
    leave(tmp_path, 1, 3, {**GRAPH, "rows_rewired": 2})
    found = read_folder(tmp_path)
    differs, missing = found.problems
    assert differs.startswith("rank 1 differs from rank 0: Decoder rewired, 2 of 4 rows")
    assert missing.startswith("rank 2 of 3 left no file")
    assert found.status == 1
    leave(tmp_path, 1, 3, GRAPH)
    leave(tmp_path, 2, 3, {**GRAPH, "first_run_seconds": 9.0})
    assert read_folder(tmp_path).status == 0
    leave(tmp_path, 2, 3, GRAPH, alive=False)
    found = read_folder(tmp_path)
    assert (found.problems, found.status) == (("rank 2 of 3: no sign of life",), 1)


def test_what_has_ended_does_not_count(tmp_path: Path) -> None:
    here, dead = {"place": place(), "pid": os.getpid(), "started": started(os.getpid())}, {"place": place(), "pid": 7}
    leave(tmp_path, 0, 1, GRAPH, **dead)
    found = read_folder(tmp_path)
    assert ([one.life for one in found.processes], found.status) == ([Life.ENDED], 2)
    leave(tmp_path, 0, 1, PLAIN, alive=False)
    found = read_folder(tmp_path)
    assert ([one.head.place for one in found.processes], found.earlier, found.status) == ([place()], 1, 2)
    leave(tmp_path, 0, 1, GRAPH, **here)
    found = read_folder(tmp_path)
    assert ([one.head.pid for one in found.processes], found.earlier, found.status) == ([os.getpid()], 2, 0)
    leave(tmp_path, 0, 1, GRAPH, **(here | {"started": "1"}))
    assert read_folder(tmp_path).status == 2, "an earlier process had the same number"


def test_a_process_that_ended_and_was_not_asked_for_is_no_process() -> None:
    if (child := os.fork()) == 0:
        os._exit(0)
    try:
        wait_until(lambda: started(child) == "")
    finally:
        os.waitpid(child, 0)


def test_of_other_hosts_no_clock_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system says what the time is, whatever this host thinks; where it can't be asked, nothing is known."""
    leave(tmp_path, 0, 1, GRAPH)
    monkeypatch.setattr(time, "time", lambda: 1e12)
    assert read_folder(tmp_path).status == 0
    monkeypatch.setattr(living.Path, "open", denied)
    found = read_folder(tmp_path)
    assert ([one.life for one in found.processes], found.status) == ([Life.UNKNOWN], 2)


def denied(*_: Any, **__: Any) -> None:
    raise PermissionError(13, "Permission denied")


def test_processes_are_found_by_number(tmp_path: Path) -> None:
    environment = {**os.environ, VARIABLE: "status"}
    wait = [sys.executable, "-c", "input()"]
    with subprocess.Popen(wait, env=environment, cwd=tmp_path, stdin=subprocess.PIPE) as process:
        (tmp_path / "status").mkdir()
        first = {"place": place(), "pid": process.pid, "started": started(process.pid), "parent": 77}
        leave(tmp_path / "status", 0, 2, GRAPH, job="job", **first)
        leave(tmp_path / "status", 1, 2, GRAPH, job="job", parent=78)  # on another host, where torchrun is another one
        leave(tmp_path / "status", 0, 2, GRAPH, pid=process.pid, job="other", parent=77)
        folder = folder_of(process.pid)
        assert folder == tmp_path / "status"
        for number in (process.pid, 77):
            found = read_folder(folder, number)
            assert ([one.head.rank for one in found.processes], found.status) == ([0, 1], 0)
        assert read_folder(folder, 78) == FolderStatus((), 0, ())
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


DAMAGED = ["", "{", "[]\n", '{"schema": 1, "pid": "x"}\n', "\xff", "[" * 100_000, '{"schema": 2, "ranks": 1e999}\n']


@pytest.mark.parametrize("text", DAMAGED, ids=[text[:12] for text in DAMAGED])
def test_a_damaged_file_is_named_and_hides_no_other(tmp_path: Path, text: str) -> None:
    leave(tmp_path, 0, 1, GRAPH)
    (tmp_path / "vm-1.jsonl").write_bytes(text.encode("latin-1"))
    found = read_folder(tmp_path)
    assert [one.answer for one in found.processes] == ["REWIRED"]
    assert (len(found.unreadable), found.unreadable[0].startswith("vm-1.jsonl: "), found.status) == (1, True, 2)
    leave(tmp_path, 0, 1, PLAIN)
    assert read_folder(tmp_path).status == 1


@pytest.mark.parametrize(
    "change", [{"schema": 1}, {"pid": 0}, {"rank": 2}, {"ranks": 0}, {"rank": -1}, {"life": "alive"}]
)
def test_what_no_process_writes_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    leave(tmp_path, change.pop("rank", 0), change.pop("ranks", 1), GRAPH, **change)
    found = read_folder(tmp_path)
    assert (len(found.unreadable), found.processes, found.status) == (1, (), 2)


def test_numbers_in_a_file_cost_nothing(tmp_path: Path) -> None:
    """A range of ranks is not written out, nor are large files read, or more files than there may be."""
    leave(tmp_path, 5, 20_000_000, GRAPH)
    leave(tmp_path, 7, 20_000_000, GRAPH)
    (tmp_path / "large.jsonl").write_bytes(b" " * (DOCUMENT_BYTES + 1))
    began = time.process_time()
    found = read_folder(tmp_path)
    assert time.process_time() - began < 5
    assert found.problems[0].startswith("ranks 0 to 4, 6, 8 to 19999999 of 20000000 left no file")
    assert found.unreadable == (f"large.jsonl: Has more than {DOCUMENT_BYTES:,} bytes",)


def test_more_files_than_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MOST_FILES", 2)
    for rank in range(3):
        leave(tmp_path, rank, 3, GRAPH, alive=rank > 0)
    found = read_folder(tmp_path)
    assert [one.head.rank for one in found.processes] == [1, 2]
    assert found.unreadable == ("1 older file: more than 2 are not read",)
