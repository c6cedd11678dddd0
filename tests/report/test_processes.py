# SPDX-License-Identifier: Apache-2.0
"""The file that a process leaves for `farskip status`: none by default, small, whole."""

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
from farskip_compile.errors import DenseModelError, FarSkipWarning, PartialModelError
from farskip_compile.models import build
from farskip_compile.records import process_file, registry
from farskip_compile.records.compile import CompileReport, Outcome
from farskip_compile.records.living import Life, place
from farskip_compile.records.processes import VARIABLE, read_folder
from farskip_compile.records.registry import COMPILES

IDS = torch.arange(8).view(1, 8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this process writes, with nothing written before."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "status"))
    monkeypatch.setattr(COMPILES, "entries", {})
    return tmp_path / "status"


def every(folder: Path) -> list[Any]:
    """Each process, also those in whose place others live."""
    found = []
    for file in sorted(folder.glob("*.jsonl")):
        alone = folder.parent / file.stem
        alone.mkdir()
        (alone / file.name).write_text(file.read_text())
        found += read_folder(alone).processes
    return found


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


def test_a_function_that_runs_as_written_is_forgotten_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """`status(model)` must not say REWIRED because later compiles have displaced what stopped."""
    monkeypatch.setattr(registry, "MOST_ENTRIES", 3)
    compiles = registry.Compiles()
    compiles.put("stopped", registry.Entry(lambda: None, is_stop=True))
    for number in range(4):
        compiles.put(number, registry.Entry(lambda: None))
        compiles.put(f"part {number}", registry.Entry(lambda: None, is_part=True))
    assert list(compiles.entries) == ["stopped", 2, 3]
