# SPDX-License-Identifier: Apache-2.0
"""The command line: exit statuses, JSON, text, pictures."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from farskip_compile.cli import app
from farskip_compile.demo.results import DemoCase
from farskip_compile.models import MODELS
from tests.explain.sample_reports import check, demo, farskip_report

ROWS = {
    "deepseek_v3": ["mlp.0", "moe.1", "attention.2", "moe.2", "attention.3", "moe.3"],
    "qwen3_moe": ["moe.0", "attention.1", "moe.1", "attention.2", "moe.2", "attention.3", "moe.3"],
    "mixtral": ["moe.0", "attention.1", "moe.1", "attention.2", "moe.2", "attention.3", "moe.3"],
    "llama4": ["mlp.0", "moe.1", "attention.2", "mlp.2", "moe.3"],
    "transformers:deepseek_v3": ["mlp.0", "moe.1", "attention.2", "moe.2", "attention.3", "moe.3"],
}


def run(*args: str, columns: int = 80):
    return CliRunner().invoke(app, list(args), env={"COLUMNS": str(columns)})


@pytest.mark.parametrize("name", [*MODELS, "transformers:deepseek_v3"])
def test_explain_built_in_models_as_json(name):
    if name.startswith("transformers"):
        pytest.importorskip("transformers")
    result = run("explain", name, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["model"] == name
    assert found["refusal"] is None
    assert found["report"]["outcome"] == "rewired"
    assert found["versions"]["torch"]
    rows = found["report"]["sub_blocks"]
    assert [row["name"] for row in rows if row["left_out"]] == ROWS[name]
    keys = {"name", "layer", "kind", "evidence", "where", "collectives", "reads_before", "reads_after", "left_out"}
    assert all(keys <= row.keys() for row in rows)
    assert all(set(row["reads_before"]) - set(row["reads_after"]) == set(row["left_out"]) for row in rows)


@pytest.mark.parametrize("spec", ["with_args", "with_kwargs"])
def test_explain_a_callable_as_text_and_picture(spec, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "table.png"
    result = run("explain", f"tests.sample_models:{spec}", "--connectivity", "attention", "--png", str(picture))
    assert result.exit_code == 0, result.output
    table = [line for line in result.stdout.splitlines() if not line.startswith("Picture:")]
    assert max(map(len, table)) <= 80
    assert "standard -> attention, verified" in result.stdout
    assert picture.stat().st_size > 5000


def test_layers_are_passed_on():
    result = run("explain", "tests.sample_models:with_args", "--layers", "1:1", "--json")
    found = json.loads(result.stdout)
    assert found["layers"] == [1, 1]
    assert [row["name"] for row in found["report"]["sub_blocks"] if row["left_out"]] == ["attention.1", "moe.1"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["deepsek_v3"], "did you mean 'deepseek_v3'?"),
        (["nothing.here:build"], "there is no module 'nothing.here'"),
        (["tests.sample_models:denes"], "did you mean 'dense'?"),
        (["tests.sample_models:no_vocabulary"], "no example inputs can be made"),
        (["tests.sample_models:no_model"], "returned int"),
        (["mixtral", "--layers", "3"], "is not a range"),
        (["mixtral", "--connectivity", "some"], "'some' is not one of"),
        ([":build"], "is not a module name"),
    ],
)
def test_wrong_usage(args, says):
    result = run("explain", *args, columns=200)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert not result.stdout
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("spec", "error"),
    [("dense", "DenseModelError"), ("breaks", "Unsupported")],
)
def test_refusals(spec, error):
    result = run("explain", f"tests.sample_models:{spec}")
    assert result.exit_code == 1
    assert error in result.stdout
    assert "way out:" in result.stdout
    assert "Traceback" not in result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    as_json = run("explain", f"tests.sample_models:{spec}", "--json")
    assert as_json.exit_code == 1
    assert json.loads(as_json.stdout)["refusal"]["error"] == error


def test_errors_of_the_users_callable_are_shown_with_their_line():
    result = run("explain", "tests.sample_models:raises", columns=200)
    assert result.exit_code == 1
    assert "weights are missing" in result.stderr
    assert "sample_models.py:" in result.stderr


def test_version_and_help():
    assert "farskip-compile" in run("--version").stdout
    assert "explain" in run("--help").stdout
    assert "transformers:FAMILY" in run("explain", "--help").stdout.replace("\n", "")


PASSING = (DemoCase("one", "about one", report=farskip_report("dm"), checks=(check(),)),)
FAILING = (DemoCase("one", "about one", problem="rank 0 failed: no"),)


@pytest.mark.parametrize(("cases", "status"), [(PASSING, 0), (FAILING, 1)])
@pytest.mark.parametrize("as_json", [False, True])
def test_demo_command(cases, status, as_json, tmp_path, monkeypatch):
    def pretend(tell, done, command):
        tell("working")
        for case in cases:
            done(case)
        return demo(*cases)

    monkeypatch.setattr("farskip_compile.demo.run_demo", pretend)
    result = run("demo", "--out", str(tmp_path / "new"), *(["--json"] if as_json else []))
    assert result.exit_code == status, result.output
    assert "<!doctype html>" in (tmp_path / "new" / "farskip_demo.html").read_text()
    if as_json:
        assert json.loads(result.stdout)["passed"] is (status == 0)
    else:
        assert "one" in result.stdout


def test_demo_says_at_once_that_it_can_not_write(tmp_path):
    (tmp_path / "file").write_text("")
    result = run("demo", "--out", str(tmp_path / "file"), columns=200)
    assert result.exit_code == 2
    assert "can't write" in result.stderr
