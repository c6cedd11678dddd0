# SPDX-License-Identifier: Apache-2.0
"""`explain`: captures without running, keeps refusals, leaves the model alone."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from farskip_compile.errors import ConfigError
from farskip_compile.models import build
from farskip_compile.tools.explain import explain
from tests import sample_models
from tests.graphs import Layer, MoE, Stack, table_of

IDS = torch.zeros(1, 5, dtype=torch.long)


def test_before_and_after_twice():
    model = build("deepseek_v3", layers=("dense", "moe", "moe"))
    first, second = explain(model, IDS), explain(model, ids=IDS)
    assert first.refusal is None
    assert first.report.rows == second.report.rows
    by_name = {row["name"]: row for row in first.to_json()["report"]["sub_blocks"]}
    assert by_name["attention.2"]["left_out"] == ["r1"]
    assert by_name["attention.2"]["reads_before"] == ["e", "a0", "m0", "a1", "r1", "s1"]
    assert by_name["moe.1"]["left_out"] == ["a1"]
    assert by_name["moe.1"]["independent_before"] == ["s1"]
    assert by_name["moe.1"]["independent_after"] == ["a1", "s1", "a2"]
    assert json.loads(json.dumps(first.to_json())) == first.to_json()


def test_a_parallel_block_that_adds_its_experts_first_skips_its_attention_only():
    class Swapped(Layer):
        def forward(self, x):
            h = self.norm1(x)
            return x + self.feed_forward(h) + self.attention(h)

    table = table_of(Stack(lambda: Swapped(MoE()), 3))
    skipped = {row.name: table.names(table.skipped(row)) for row in table.rows}
    assert skipped == {f"attention.{n}": [] for n in range(3)} | {f"moe.{n}": [f"a{n}"] for n in range(3)}


def test_the_model_is_not_run_and_not_changed():
    model = build("mixtral", layers=("moe", "moe")).to("meta").train()
    model.layers[0].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    found = explain(model, IDS.to("meta"))
    assert found.report.rewired_rows == ("moe.0", "attention.1", "moe.1")
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_compiled_models_work_after_it():
    model = build("mixtral", layers=("moe",))
    compiled = torch.compile(model, backend="eager")
    before = compiled(IDS)
    explain(model, IDS)
    assert torch.equal(compiled(IDS), before)
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("wish", "error", "way_out"),
    [
        ({"layers": (1, 7)}, "LayerRangeError", "first, last"),
        ({"connectivity": {"moe.1": ["a9"]}}, "ConnectivityError", "terms that 'moe.1' reads"),
    ],
)
def test_refusals_keep_the_table_as_written(wish, error, way_out):
    found = explain(build("mixtral", layers=("moe", "moe")), IDS, **wish)
    assert found.refusal.error == error
    assert way_out in found.refusal.way_out
    assert [row.name for row in found.report.rows] == ["attention.0", "moe.0", "attention.1", "moe.1"]
    assert not found.report.rewired_rows
    assert found.to_json()["refusal"]["error"] == error


def test_a_dense_model_is_refused_with_its_table():
    found = explain(sample_models.dense(), IDS)
    assert found.refusal.error == "DenseModelError"
    assert len(found.report.rows) == 4


def test_a_graph_break_is_a_refusal_with_its_line():
    found = explain(sample_models.Breaks(), IDS)
    assert found.report is None
    assert "graph_break" in found.refusal.reason
    assert "sample_models.py:" in found.refusal.where
    assert "http" not in found.refusal.reason
    assert found.refusal.way_out


def test_no_residual_stack():
    found = explain(nn.Linear(4, 4), torch.zeros(2, 4))
    assert found.refusal.error == "NoResidualStackError"
    assert found.report is None


def test_wrong_options_are_the_callers_error():
    with pytest.raises(ConfigError, match="ful"):
        explain(nn.Linear(4, 4), torch.zeros(2, 4), connectivity="ful")


def test_errors_of_the_model_itself_are_passed_on():
    with pytest.raises(TypeError, match="positional argument"):
        explain(build("mixtral", layers=("moe",)))


@pytest.mark.parametrize("how", ["wrapped", "in place", "forward"])
def test_a_compiled_model_is_explained_for_what_is_asked(how):
    """Not for what it was compiled with, whatever backend that was."""
    model = build("mixtral", layers=("moe", "moe"))
    if how == "wrapped":
        model = torch.compile(model, backend="eager")
    elif how == "in place":
        model.compile(backend="farskip", options={"connectivity": "mlp", "inner": "eager"})
    else:
        model.forward = torch.compile(model.forward, backend="farskip", options={"connectivity": "none"})
    assert explain(model, IDS).report.rewired_rows == ("moe.0", "attention.1", "moe.1")
    assert explain(model, IDS, connectivity="mlp").report.rewired_rows == ("moe.0", "moe.1")
