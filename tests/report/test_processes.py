# SPDX-License-Identifier: Apache-2.0
"""The files that processes leave for `farskip status`: none by default, small, whole; and what they say together.

Class of fault: a yes for what does not run, or does not run now, or not with every row; a file that costs, or hides,
more than itself.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo import config as dynamo_config

import farskip_compile
from farskip_compile.base.reading.files import DOCUMENT_BYTES
from farskip_compile.errors import ConfigError, DenseModelError, FarSkipWarning, PartialModelError
from farskip_compile.models import build
from farskip_compile.records import living, process_file, processes, registry
from farskip_compile.records.compile import CompileReport, Outcome
from farskip_compile.records.living import Life, place, started
from farskip_compile.records.processes import VARIABLE, FolderStatus, folder_of, read_folder
from farskip_compile.records.registry import COMPILES

IDS = torch.arange(8).view(1, 8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this process writes, with nothing written before."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "status"))
    monkeypatch.setattr(COMPILES, "entries", {})
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
    model = model_of()
    model(IDS)
    regional = build("mixtral", vocab_size=16, hidden_size=32, layers=("moe", "moe", "moe"))
    farskip_compile.regional(regional, inner="eager")
    regional(IDS)
    (file,) = folder.iterdir()
    assert file.name == f"{platform.node()}-{os.getpid()}-{place()}.jsonl"
    assert file.stat().st_size < 8192
    found = read_folder(folder)
    (process,) = found.processes
    assert (process.head.pid, process.life, process.answer, found.status) == (os.getpid(), Life.ALIVE, "REWIRED", 0)
    graph, *parts, whole = process.compiled
    assert (graph.kind, graph.model, graph.outcome, graph.ran) == ("graph", "Decoder", "rewired", True)
    assert (graph.rows_rewired, graph.rows_asked, graph.rows, whole.rows_rewired) == (3, 3, 4, 5)
    assert None not in (graph.first_run_seconds, graph.compile_seconds)
    assert {one.kind for one in parts} == {"part"}
    assert [one.shown.kind for one in process.models] == ["graph", "layers"]
    dense = model_of("dense")
    with pytest.raises(DenseModelError):
        dense(IDS)
    (process,) = read_folder(folder).processes
    assert (process.answer, process.failures[-1].error) == ("NOT REWIRED", "DenseModelError")
    model(IDS[:, :7])
    assert not read_folder(folder).rewired, "another model was compiled since, and not the one that was refused"
    del dense
    gc.collect()
    regional(IDS[:, :7])
    assert read_folder(folder).rewired, "the one that was refused is gone"


def test_two_models_of_one_class_are_two(folder: Path) -> None:
    """By name alone, the one that was compiled last would stand for both."""
    plain, rewired = build("mixtral", vocab_size=16, hidden_size=32, layers=("moe", "moe")), model_of()
    plain.compile(backend="farskip", options={"inner": "eager", "connectivity": "none"})
    plain(IDS)
    rewired(IDS)
    (process,) = read_folder(folder).processes
    assert [(one.name, one.answer) for one in process.models] == [("Decoder", "NOT REWIRED"), ("Decoder", "REWIRED")]
    assert read_folder(folder).status == 1
    torch.compiler.reset()
    plain.compile(backend="farskip", options={"inner": "eager"})
    plain(IDS)
    rewired(IDS)
    assert read_folder(folder).status == 0, "compiled anew, with other options"


@pytest.mark.parametrize("strict", [False, True])
def test_beyond_dynamos_limit(folder: Path, strict: bool) -> None:
    """The file says what `status(model)` says: the model runs as it is written, or the call was an error."""
    model = build("mixtral", vocab_size=16, hidden_size=32, layers=("moe", "moe"))
    model.compile(backend="farskip", options={"inner": "eager", "strict": strict})
    with dynamo_config.patch(recompile_limit=1, automatic_dynamic_shapes=False):
        model(IDS)
        assert read_folder(folder).status == 0
        with pytest.raises(PartialModelError) if strict else pytest.warns(FarSkipWarning, match="as it is written"):
            model(IDS[:, :7])
        (process,) = read_folder(folder).processes
        assert [one.answer for one in process.models] == ["NOT REWIRED"]
        assert (process.failures[0].kind, process.failures[0].model) == ("error" if strict else "stopped", "Decoder")
        assert read_folder(folder).status == 1
        torch.compiler.reset()
        model(IDS[:, :7])
        assert read_folder(folder).status == 0, "it was compiled anew"


BOTH_WAYS = """
import json, os, sys, warnings
from pathlib import Path
import torch
from torch._dynamo import config
import farskip_compile
from farskip_compile.models import build
from farskip_compile.records.processes import read_folder

warnings.simplefilter("ignore")
ids, by_whom = torch.arange(8).view(1, 8), sys.argv[1]
models = [build("mixtral", vocab_size=16, hidden_size=32, layers=("moe", "moe")) for _ in range(2)]


def answers():
    (process,) = read_folder(Path(os.environ["FARSKIP_STATUS_DIR"])).processes
    return [str(farskip_compile.status(models[0]).answer), str(process.models[-1].answer), str(process.answer)]


said = []
for model in models:
    model.compile(backend="farskip", options={"inner": "eager", "strict": False})
with config.patch(recompile_limit=1, automatic_dynamic_shapes=False):
    for model in models:
        model(ids)
    said.append(answers())
    if by_whom == "another backend":
        torch.compile(models[0].forward, backend="eager")(ids[:, :7])
    else:
        models[0 if by_whom == "the model" else 1](ids[:, :7])
    said.append(answers())
    torch.compiler.reset()
    for model in models:
        model(ids[:, :7])
        config.recompile_limit = 8
    said.append(answers())
print(json.dumps(said))
"""


@pytest.mark.parametrize("by_whom", ["the model", "one that shares its code", "another backend"])
def test_beyond_dynamos_limit_both_say_the_same(tmp_path: Path, by_whom: str) -> None:
    """`status(model)` and `farskip status`, also if the version beyond the limit was not for this model."""
    environment = {**os.environ, VARIABLE: str(tmp_path / "status")}
    command = [sys.executable, "-c", BOTH_WAYS, by_whom]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    before, beyond, anew = json.loads(done.stdout.splitlines()[-1])
    assert before == ["REWIRED"] * 3
    assert beyond == ["NOT REWIRED"] * 3
    assert anew[:2] == ["REWIRED"] * 2


def test_a_copy_that_runs_as_it_is_written(folder: Path) -> None:
    """A copy loses what `model.compile` made: it is warned of once, and `farskip status` says so until it is gone."""
    model = build("mixtral", vocab_size=16, hidden_size=32, layers=("moe", "moe"))
    model.compile(backend="farskip", options={"inner": "eager", "strict": False})
    model(IDS)
    twin = copy.deepcopy(model)
    with pytest.warns(FarSkipWarning, match="original wiring"):
        twin(IDS)
    (process,) = read_folder(folder).processes
    assert ([one.error for one in process.failures], process.answer) == (["OriginalWiringError"], "NOT REWIRED")
    twin.compile(backend="farskip", options={"inner": "eager", "strict": False})
    twin(IDS[:, :7])
    assert read_folder(folder).status == 0, "the copy is compiled, too"


def test_a_forked_process_does_not_speak_for_its_parent(folder: Path) -> None:
    model = model_of()
    model(IDS)
    if (child := os.fork()) == 0:
        process_file.note_report(CompileReport(Outcome.NO_STACK, nodes=1, config={}))
        os._exit(0)
    os.waitpid(child, 0)
    verdicts = {one.head.pid: (one.life, one.answer) for one in every(folder)}
    assert verdicts == {os.getpid(): (Life.ALIVE, "REWIRED"), child: (Life.ENDED, "UNKNOWN")}


def test_signs_of_life_and_what_is_gone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other hosts see that the file is touched. A model that is gone runs no more."""
    monkeypatch.setattr(process_file._File, "is_touched", False)
    monkeypatch.setattr(process_file, "BEAT", 0.01)
    model = model_of()
    model(IDS)
    (file,) = folder.iterdir()
    os.utime(file, (1.0, 1.0))
    wait_until(lambda: file.stat().st_mtime > 1.0)
    del model
    torch.compiler.reset()
    gc.collect()
    wait_until(lambda: len(file.read_text().splitlines()) == 1)
    monkeypatch.delenv(VARIABLE)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_folder_that_can_not_be_written_is_no_error_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file"))
    monkeypatch.setattr(process_file._File, "has_warned", False)
    model_of()(IDS)
    assert caplog.text.count("will not see this process") == 1


def test_an_error_that_comes_again_is_the_last_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the oldest lines go: parts before errors, and one line for one error."""
    monkeypatch.setattr(registry, "MOST_ENTRIES", 2)
    report = CompileReport(Outcome.REWIRED, nodes=1, config={"connectivity": "full", "layers": None})
    error = DenseModelError("the same")
    for again in range(3):
        with pytest.raises(DenseModelError), process_file.errors_noted():
            raise error
        if again < 2:
            process_file.note_report(report)
    (process,) = read_folder(folder).processes
    assert [one.error for one in process.failures] == ["DenseModelError"]
    assert process.answer == "NOT REWIRED"


def test_a_table_of_many_rows_does_not_fill_the_file(folder: Path) -> None:
    rows = {f"moe.{number}": [f"a{number}"] for number in range(1000)}
    config = {"connectivity": rows, "layers": None}
    process_file.note_report(CompileReport(Outcome.NO_STACK, nodes=1, config=config))
    (file,) = folder.iterdir()
    assert file.stat().st_size < 2048


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


def every(folder: Path) -> list[Any]:
    """Each process, also those in whose place others live."""
    found = []
    for file in sorted(folder.glob("*.jsonl")):
        alone = folder.parent / file.stem
        alone.mkdir()
        (alone / file.name).write_text(file.read_text())
        found += read_folder(alone).processes
    return found


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
