# SPDX-License-Identifier: Apache-2.0
"""`farskip check serving`: its table, its exit statuses; vLLM itself is compared by `make vllm`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from farskip_compile.base import extras
from farskip_compile.cli import app
from farskip_compile.errors import VerificationError
from farskip_compile.vllm import compare as comparing
from farskip_compile.vllm.compare import ComparedAnswer, ServingComparison


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `compare` was asked."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(extras, "is_missing", lambda package: False)
    return found


def answer(monkeypatch: pytest.MonkeyPatch, asked: list[dict[str, Any]], apart: float) -> None:
    def compare(checkpoint: Path, **options: Any) -> ServingComparison:
        asked.append(options)
        rows = tuple(ComparedAnswer(16, 16, apart) for _ in options["prompts"])
        return ServingComparison(rows, tuple(ComparedAnswer(16, 3, 1.5) for _ in rows), 1e-3)

    monkeypatch.setattr(comparing, "compare", compare)


def run(folder: Path, *args: str, columns: int = 80) -> Any:
    return CliRunner().invoke(app, ["check", "serving", str(folder), *args], env={"COLUMNS": str(columns)})


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table(asked, monkeypatch, tmp_path, columns):
    answer(monkeypatch, asked, 2e-6)
    (tmp_path / "prompts").write_text("All ranks must issue collectives in the same order\n\nSecond\n")
    options = ["--tensor-parallel-size", "2", "--prompts", str(tmp_path / "prompts"), "--engine", '{"seed": 7}']
    done = run(tmp_path, *options, columns=columns)
    assert done.exit_code == 0, done.output
    assert asked[0]["engine"] == {"tensor_parallel_size": 2, "seed": 7}
    assert asked[0]["prompts"] == ("All ranks must issue collectives in the same order", "Second")
    assert "16 of 16" in done.stdout
    assert "2.0e-06" in done.stdout
    assert "served as asked" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= columns


def test_what_is_not_served_is_status_1(asked, monkeypatch, tmp_path):
    answer(monkeypatch, asked, 1e-2)
    done = run(tmp_path)
    assert done.exit_code == 1
    assert "NOT SERVED AS ASKED" in done.stdout
    document = json.loads(run(tmp_path, "--json").stdout)
    assert document["holds"] is False
    assert document["rewired"][1] == {"tokens": 16, "equal": 16, "apart": 1e-2}


def test_options_are_passed_on(asked, monkeypatch, tmp_path):
    answer(monkeypatch, asked, 0.0)
    assert run(tmp_path, "--farskip", '{"connectivity": "mlp"}', "--dtype", "bfloat16").exit_code == 0
    assert asked[0]["options"] == {"connectivity": "mlp"}
    assert asked[0]["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    "args", [["--engine", "{"], ["--engine", "[]"], ["--farskip", "7"], ["--dtype", "int8"], ["--tokens", "0"]]
)
def test_wrong_usage_is_status_2(asked, monkeypatch, tmp_path, args):
    answer(monkeypatch, asked, 0.0)
    assert run(tmp_path, *args).exit_code == 2
    assert not asked


def test_a_server_that_does_not_start_is_status_1(asked, monkeypatch, tmp_path):
    def compare(*args: Any, **options: Any) -> ServingComparison:
        raise VerificationError("vLLM did not answer (exit status 1)", way_out="mend what it says")

    monkeypatch.setattr(comparing, "compare", compare)
    done = run(tmp_path)
    assert done.exit_code == 1
    assert "Traceback" not in done.output


def test_without_vllm(tmp_path):
    assert run(tmp_path).exit_code == 2


LOG = """
(Worker) ERROR 11-30 [executor.py:1] Traceback (most recent call last):
(Worker) ERROR 11-30 [executor.py:1] farskip_compile.errors.ManifestError: another model
(Worker) ERROR 11-30 [executor.py:1]   way out: compile the other one
RuntimeError: Engine core initialization failed.
"""


def test_the_reason_is_this_packages_error_if_there_is_one():
    reason = comparing._reason(LOG)
    assert reason.startswith("ManifestError: another model\n  way out: compile the other one")
    assert comparing._reason("a\nlast") == "a\nlast"
