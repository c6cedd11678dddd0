# SPDX-License-Identifier: Apache-2.0
"""`farskip explain MODEL --manifest PATH`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from farskip_compile import Manifest, load_manifest
from farskip_compile.cli import app


def run(*args: str) -> Any:
    return CliRunner().invoke(app, ["explain", *args], env={"COLUMNS": "200"})


def test_prints_a_manifest() -> None:
    result = run("tests.sample_models:with_args", "--connectivity", "attention", "--layers", "1:1", "--manifest", "-")
    assert result.exit_code == 0, result.output
    found = Manifest.from_json(json.loads(result.stdout))
    assert (found.connectivity, found.layers) == ("attention", (1, 1))
    assert [row.name for row in found.table.rows if row.left_out] == ["attention.1"]


def test_writes_into_a_checkpoint_folder(tmp_path: Path) -> None:
    result = run("tests.sample_models:with_kwargs", "--manifest", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "farskip.json") in result.stdout
    assert load_manifest(tmp_path).connectivity == "full"


@pytest.mark.parametrize(
    ("args", "status", "says"),
    [
        (["tests.sample_models:dense"], 1, "DenseModelError"),
        (["tests.sample_models:with_args", "--layers", "1:7"], 1, "LayerRangeError"),
        (["tests.sample_models:breaks"], 1, "graph_break"),
        (["tests.sample_models:raises"], 1, "weights are missing"),
        (["deepsek_v3"], 2, "did you mean 'deepseek_v3'?"),
        (["mixtral", "--layers", "3"], 2, "is not a range"),
        (["tests.sample_models:with_args", "--manifest", "/nowhere/all.json"], 2, "can't write /nowhere/all.json"),
    ],
)
def test_refusals_and_wrong_usage(args: list[str], status: int, says: str) -> None:
    result = run(*args, *([] if "--manifest" in args else ["--manifest", "-"]))
    assert result.exit_code == status, result.output
    assert says in result.stderr
    assert not result.stdout
    assert "Traceback" not in result.output
