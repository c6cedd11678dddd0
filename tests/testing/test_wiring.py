# SPDX-License-Identifier: Apache-2.0
"""`assert_rewired` and `assert_wiring`: pass for what the paper says, fail for everything else and show where."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from farskip_compile import ConfigError, Outcome, backend
from farskip_compile.errors import LayerRangeError
from farskip_compile.models import FarSkipForm, build
from farskip_compile.passes.residual.termset import TermSet
from farskip_compile.passes.rewire import request as rules
from farskip_compile.testing import assert_rewired, assert_wiring
from farskip_compile.testing.drawing import MOST_ROWS, drawing, wrong_rows
from farskip_compile.testing.expected import expected_reads, reads_as_written, reads_in_standard_wiring
from farskip_compile.testing.strategies import cases, nothing_to_leave_out
from farskip_compile.testing.strategies.architectures import GeneratedCase
from tests import sample_models
from tests.explain.sample_reports import farskip_report
from tests.graphs import Dense, Layer, MoE, Stack
from tests.graphs import ids as few_ids
from tests.testing.texts import failure_of

IDS = few_ids()


def small(kinds="dmmm"):
    """One letter for each layer: dense or MoE."""
    kind = iter(kinds)
    return Stack(lambda: Layer(Dense() if next(kind) == "d" else MoE()), layers=len(kinds))


def decoder(**more):
    return build("mixtral", layers=("dense", "moe", "moe"), shared_experts=1, **more)


def compiled(model, **options):
    return torch.compile(model, backend="farskip", fullgraph=True, options={"inner": "eager", **options})


@pytest.mark.parametrize("wish", [{}, {"connectivity": "attention"}, {"connectivity": "mlp", "layers": (1, 2)}])
def test_the_compiler_does_what_the_paper_says(wish):
    report = assert_rewired(small(), IDS, **wish)
    assert report.outcome is Outcome.REWIRED


@settings(max_examples=15)
@given(case=cases(max_layers=4), before=st.booleans())
def test_generated_models_are_rewired_as_the_paper_says(case: GeneratedCase, before: bool):
    wish = {"connectivity": case.connectivity, "layers": case.layers}
    model = case.model() if before else compiled(case.model(), **case.options())
    if nothing_to_leave_out(case):
        assert failure_of(assert_rewired, model, case.ids(), **wish).startswith("LayerRangeError")
    else:
        assert_rewired(model, case.ids(), **wish)


@settings(max_examples=10)
@given(case=cases(max_layers=4))
def test_forms_written_by_hand_have_the_wiring_of_the_paper(case: GeneratedCase):
    model = case.model()
    if case.config.parallel_block and case.connectivity not in ("full", "mlp"):
        return  # each feed-forward skips the attention anyway
    if nothing_to_leave_out(case) or (case.config.parallel_block and case.layers is not None):
        return
    assert_wiring(case.oracle(model), case.ids(), connectivity=case.connectivity, layers=case.layers)
    if case.connectivity != "none":
        failure_of(assert_wiring, case.oracle(model), case.ids(), connectivity="none")


def test_a_model_is_captured_and_not_run():
    model = small().to("meta")
    assert_rewired(model, IDS.to("meta"))
    assert_rewired(compiled(model), IDS.to("meta"))


@pytest.mark.parametrize("how", ["wrapped", "in place", "forward", "inside", "function"])
def test_a_compiled_model_is_held_to_what_it_was_compiled_with(how: str):
    def make(**options):
        options = {"inner": "eager", **options}
        model = small()
        if how == "wrapped":
            return torch.compile(model, backend="farskip", fullgraph=True, options=options)
        if how == "in place":
            model.compile(backend=backend(**options))
        elif how == "forward":
            model.forward = torch.compile(model.forward, backend="farskip", options=options)
        elif how == "inside":
            return nn.Sequential(torch.compile(model, backend=backend(**options), dynamic=True))
        elif how == "function":
            return torch.compile(lambda ids: model(ids), backend="farskip", options=options)
        return model

    model = make(connectivity="mlp")
    text = failure_of(assert_rewired, model, IDS)
    assert "compiled with: connectivity 'mlp', all layers" in text
    assert "attention.2 must not read r1" in text
    assert_rewired(model, IDS, connectivity="mlp")


def test_the_table_of_the_failure():
    text = failure_of(assert_rewired, compiled(small(), connectivity="mlp"), IDS)
    assert text.splitlines() == [
        "2 of 8 sub-blocks do not read what connectivity 'full', all layers asks for",
        "  compiled with: connectivity 'mlp', all layers",
        "  attention.2 must not read r1",
        "  attention.3 must not read r2",
        "  sub-block     e  a0  m0  a1  r1  s1  a2  r2  s2  a3  r3  s3",
        "  attention.0  x   +",
        "  mlp.0        x   .   +",
        "  attention.1  x   x   x   +",
        "  moe.1        x   x   x   .   +   +",
        "  attention.2  x   x   x   x  [x]  x   +",
        "  moe.2        x   x   x   x   x   x   .   +   +",
        "  attention.3  x   x   x   x   x   x   x  [x]  x   +",
        "  moe.3        x   x   x   x   x   x   x   x   x   .   +   +",
        "  [x] read, must not be  [ ] not read, must be  x read  . not read  + its own",
    ]


@pytest.mark.parametrize(
    ("options", "wish", "wrong"),
    [
        ({"layers": (2, 3)}, {}, ["mlp.0 must not read a0", "moe.1 must not read a1"]),
        ({"layers": (1, 2)}, {"layers": (1, 3)}, ["attention.3 must not read r2", "moe.3 must not read a3"]),
        ({}, {"layers": (2, 3)}, ["mlp.0 must read a0", "moe.1 must read a1"]),
        ({"connectivity": "none"}, {"connectivity": "attention"}, ["attention.2 must not read r1"]),
        ({"connectivity": {"attention.2": ["s1"]}}, {"connectivity": "attention"}, [
            "attention.2 must not read r1 and must read s1", "attention.3 must not read r2",
        ]),
        ({"connectivity": "full"}, {"connectivity": "none"}, ["mlp.0 must read a0", "moe.1 must read a1"]),
        ({"connectivity": {"moe.1": ["a1"]}}, {"connectivity": {"moe.1": ["a1"], "moe.2": ["a2"]}}, [
            "moe.2 must not read a2",
        ]),
    ],
)  # fmt: skip
def test_each_wrong_row_is_named(options, wish, wrong):
    text = failure_of(assert_rewired, compiled(small(), **options), IDS, **wish)
    assert [line for line in wrong if line not in text] == []


def test_a_defect_of_the_compilers_own_rule_is_seen():
    """The rule that is held against the compiler is not the compiler's."""
    true = rules.rule

    def one_layer_off(table, row, connectivity):
        if not row.kind.mixes_tokens:
            return true(table, row, connectivity)
        before = [other for other in table.rows_of(row.layer - 2) if other.kind is rules.TermKind.ROUTED]
        return TermSet.of(i for other in before for i in other.terms if table.terms[i].kind is rules.TermKind.ROUTED)

    def shared_too(table, row, connectivity):
        terms = true(table, row, connectivity)
        return terms | TermSet.of(index + 1 for index in terms) if row.kind.mixes_tokens else terms

    for defect, words in ((one_layer_off, "attention.2 must not read r1"), (shared_too, "must read s1")):
        with mock.patch.object(rules, "rule", defect):
            assert words in failure_of(assert_rewired, small(), IDS)


def test_of_a_form_written_by_hand_one_wrong_edge_is_seen():
    class AttentionReadsAll(FarSkipForm):
        def attention_reads_n(self, index):
            return index != 2 and super().attention_reads_n(index)

    class MoEReadsTheAttention(FarSkipForm):
        def feed_forward_reads_x(self, index):
            return index != 2 and super().feed_forward_reads_x(index)

    model = decoder()
    report = assert_wiring(FarSkipForm(model), IDS)
    assert report.wiring_before == "full"
    text = failure_of(assert_wiring, AttentionReadsAll(model), IDS)
    assert "1 of 6 sub-blocks" in text
    assert "attention.2 must not read r1" in text
    assert "moe.2 must not read a2" in failure_of(assert_wiring, MoEReadsTheAttention(model), IDS)
    assert "mlp.0 must read a0" in failure_of(assert_wiring, FarSkipForm(model), IDS, layers=(1, 2))
    assert_wiring(FarSkipForm(model, layers=(2, 2)), IDS, layers=(2, 2))


def test_wiring_does_not_depend_on_how_a_model_is_compiled():
    model = small()
    assert_wiring(model, IDS, connectivity="none")
    assert_wiring(compiled(model), IDS, connectivity="none")
    assert_wiring(decoder(parallel_block=True), IDS, connectivity="mlp")


def test_refusals_are_failures_with_the_same_text():
    with pytest.raises(AssertionError) as caught:
        assert_rewired(small(), IDS, layers=(1, 9))
    assert isinstance(caught.value.__cause__, LayerRangeError)
    assert str(caught.value) == f"LayerRangeError: {caught.value.__cause__}"
    assert "DenseModelError" in failure_of(assert_rewired, sample_models.dense(), IDS)
    assert "NoResidualStackError" in failure_of(assert_rewired, nn.Linear(4, 4), torch.zeros(2, 4))
    text = failure_of(assert_rewired, sample_models.Breaks(), IDS)
    assert "graph_break" in text
    assert "sample_models.py:" in text


def test_what_was_compiled_unchanged_is_no_success():
    model = compiled(small(), layers=(0, 9), strict=False)
    with pytest.warns(Warning, match="unchanged"):
        text = failure_of(assert_rewired, model, IDS)
    assert "compiled unchanged" in text
    assert "lies outside the model" in text


def test_a_model_of_another_backend_is_no_success():
    assert "no graph of this model" in failure_of(assert_rewired, torch.compile(small(), backend="eager"), IDS)


def test_what_would_prove_nothing_fails():
    assert "prove nothing" in failure_of(
        assert_rewired, compiled(small()), IDS, connectivity="attention", layers=(0, 1)
    )
    assert "has layers 0 to 3" in failure_of(assert_rewired, compiled(small()), IDS, layers=(1, 4))
    assert "no sub-block 'moe.9'" in failure_of(assert_wiring, small(), IDS, connectivity={"moe.9": ["a1"]})
    assert "no term 'a9'" in failure_of(assert_wiring, small(), IDS, connectivity={"moe.1": ["a9"]})
    assert "no sub-block of the model has routed experts" in failure_of(assert_wiring, small("dd"), IDS)
    assert_wiring(small("dd"), IDS, connectivity="none")
    with pytest.raises(ConfigError, match="unknown"):
        assert_rewired(small(), IDS, connectivity="ful")


def test_of_a_large_model_the_table_is_a_part():
    report = farskip_report("d" + "m" * 60, rewired=range(1, 41))
    wish = expected_reads(report, reads_as_written(report), "full", (1, 60))
    reads = {row.name: row.reads for row in report.rows}
    wrong = wrong_rows(report.table, reads, wish)
    assert {one.row.layer for one in wrong} == set(range(41, 61))
    lines = drawing(report.table, reads, wrong).splitlines()
    assert max(map(len, lines)) <= 78
    assert len(lines) == 1 + MOST_ROWS + 2
    assert lines[0].split()[:2] == ["sub-block", ".."]
    assert "and 33 more sub-blocks, the last one moe.60" in lines
    shown = [line for line in lines if "[x]" in line and not line.startswith("[x]")]
    assert [line.split()[0] for line in shown] == [one.row.name for one in wrong[:7]]


def test_far_apart_wrong_cells_are_shown_with_gaps():
    report = farskip_report("d" + "m" * 60)
    reads = {row.name: row.reads for row in report.rows}
    expected = {**reads, "moe.50": reads["moe.50"] - TermSet.of([3, 90])}
    lines = drawing(report.table, reads, wrong_rows(report.table, reads, expected)).splitlines()
    assert max(map(len, lines)) <= 78
    (line,) = (line for line in lines if line.startswith("moe.50"))
    assert line.count("[x]") == 2
    assert lines[0].split().count("..") >= 2


def test_a_term_that_was_added_half_way_up_is_read_by_all_behind_it():
    """Visual features: nobody's layer, no layer's range."""

    class Features(Stack):
        def forward(self, ids):
            x = self.layers[0](self.embedding(ids))
            x = x + self.features
            return self.head(self.norm(self.layers[1](x)))

    model = Features(lambda: Layer(MoE()))
    model.features = nn.Parameter(torch.ones(8, dtype=torch.float64).expand(2, 5, 8).clone())
    assert_wiring(model, IDS, connectivity="none")
    report = assert_rewired(model, IDS)
    position = report.terms.index("e.1")
    standard = reads_in_standard_wiring(report)
    assert position in standard["moe.1"]
    assert position not in standard["moe.0"]
