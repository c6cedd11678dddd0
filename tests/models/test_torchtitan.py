# SPDX-License-Identifier: Apache-2.0
"""torchtitan's models, a second code base beside transformers: its own attention, router, dispatcher and counters.

Inner compiler is "eager": outputs are bit-equal to the hand-written form. Gradients sum in an order of their own. They
agree to 4e-15 in float64 where nothing rounds in between; but torchtitan rotates in float32 and computes its experts in
bfloat16, and the last bit of a float64 may flip the last one of a float32 there (seen: 1e-10, with one of a hundred
seeds). Hence 1e-8; a wrong connection shows at 1e-3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import farskip_compile
from farskip_compile import Outcome
from farskip_compile.cli import app
from tests.compare import assert_gradients_close, relative_difference, run_with_gradients

pytest.importorskip("torchtitan")

from tests.models import titan

GRADIENTS = 1e-8
ATTENTION = "higher_order::flex_attention"
EXPERTS = "top-k picks token rows"

# name, kind, terms, evidence, what "full" leaves out; as written, each sub-block reads all terms above its own row
Table = tuple[tuple[str, str, tuple[str, ...], str, tuple[str, ...]], ...]

DEEPSEEK_V3: Table = (
    ("attention.0", "attention", ("a0",), ATTENTION, ()),
    ("mlp.0", "dense", ("m0",), "no token mixing, no selection", ("a0",)),
    ("attention.1", "attention", ("a1",), ATTENTION, ()),
    ("moe.1", "routed", ("r1", "s1"), EXPERTS, ("a1",)),
    ("attention.2", "attention", ("a2",), ATTENTION, ("r1",)),
    ("moe.2", "routed", ("r2", "s2"), EXPERTS, ("a2",)),
    ("attention.3", "attention", ("a3",), ATTENTION, ("r2",)),
    ("moe.3", "routed", ("r3", "s3"), EXPERTS, ("a3",)),
    ("attention.4", "attention", ("a4",), ATTENTION, ("r3",)),
    ("moe.4", "routed", ("r4", "s4"), EXPERTS, ("a4",)),
    ("attention.5", "attention", ("a5",), ATTENTION, ("r4",)),
    ("moe.5", "routed", ("r5", "s5"), EXPERTS, ("a5",)),
)
QWEN3: Table = (
    ("attention.0", "attention", ("a0",), ATTENTION, ()),
    ("moe.0", "routed", ("r0",), EXPERTS, ("a0",)),
    ("attention.1", "attention", ("a1",), ATTENTION, ("r0",)),
    ("moe.1", "routed", ("r1",), EXPERTS, ("a1",)),
    ("attention.2", "attention", ("a2",), ATTENTION, ("r1",)),
    ("moe.2", "routed", ("r2",), EXPERTS, ("a2",)),
    ("attention.3", "attention", ("a3",), ATTENTION, ("r2",)),
    ("moe.3", "routed", ("r3",), EXPERTS, ("a3",)),
    ("attention.4", "attention", ("a4",), ATTENTION, ("r3",)),
    ("moe.4", "routed", ("r4",), EXPERTS, ("a4",)),
    ("attention.5", "attention", ("a5",), ATTENTION, ("r4",)),
    ("moe.5", "routed", ("r5",), EXPERTS, ("a5",)),
    ("attention.6", "attention", ("a6",), ATTENTION, ("r5",)),
    ("moe.6", "routed", ("r6",), EXPERTS, ("a6",)),
    ("attention.7", "attention", ("a7",), ATTENTION, ("r6",)),
    ("moe.7", "routed", ("r7",), EXPERTS, ("a7",)),
)

BUILDS: dict[str, tuple[Callable[..., titan.Example], Table]] = {
    "deepseek_v3": (titan.build_deepseek_v3, DEEPSEEK_V3),
    "qwen3": (titan.build_qwen3, QWEN3),
}

SOME = {"deepseek_v3": 3, "qwen3": 2}
"""Layers for training: the first one of deepseek_v3 is dense."""


@pytest.fixture(autouse=True)
def on_cpu() -> Iterator[None]:
    with titan.on_cpu():
        yield


def compiled(model: nn.Module, connectivity: str = "full") -> Callable[..., torch.Tensor]:
    return torch.compile(
        model, backend="farskip", fullgraph=True, options={"inner": "eager", "connectivity": connectivity}
    )


def only_report() -> farskip_compile.CompileReport:
    """Of a model that was captured as one graph."""
    (report,) = farskip_compile.reports().compiles
    return report


@pytest.mark.parametrize("name", BUILDS)
def test_debug_model_has_the_table_of_its_source(name: str) -> None:
    build, table = BUILDS[name]
    model, args = build()
    with torch.no_grad():
        output = compiled(model)(*args)
        assert torch.equal(output, titan.EagerForm(model)(*args))
        assert not torch.equal(output, model(*args))  # FarSkip is another model
    report = only_report()
    assert report.outcome is Outcome.REWIRED
    assert (report.wiring_before, report.wiring_after) == ("standard", "full")
    read, names = report.table, report.table.names
    assert table == tuple(
        (r.name, r.kind, tuple(names(r.terms)), read.evidence(r), tuple(names(r.left_out))) for r in read.rows
    )
    above = ["e"]
    for row in report.rows:
        assert names(row.reads_as_written) == above
        assert names(row.reads) == [term for term in above if term not in names(row.left_out)]
        assert read.collectives(row) == ()
        above += names(row.terms)
    assert list(report.terms) == above


def counts(model: nn.Module) -> list[torch.Tensor]:
    """Of tokens, for each expert; the forward pass adds to them in training. They begin anew."""
    buffers = [buffer for name, buffer in model.named_buffers() if name.endswith("tokens_per_expert_E")]
    found = [buffer.clone() for buffer in buffers]
    for buffer in buffers:
        buffer.zero_()
    return found


@pytest.mark.parametrize("connectivity", ["full", "attention", "mlp"])
@pytest.mark.parametrize("name", BUILDS)
def test_training_step(name: str, connectivity: str) -> None:
    """Outputs and counts bit for bit, and gradients of all parameters."""
    build, table = BUILDS[name]
    layers = SOME[name]
    model, args = build(slice(layers), torch.float64)
    model.train()
    expected, expected_gradients = run_with_gradients(titan.EagerForm(model, connectivity), model, *args)
    expected_counts = counts(model)
    output, gradients = run_with_gradients(compiled(model, connectivity), model, *args)
    found = counts(model)
    assert torch.equal(output, expected)
    assert_gradients_close(gradients, expected_gradients, GRADIENTS)
    assert len(gradients) == len(list(model.parameters()))
    assert all(map(torch.equal, found, expected_counts))
    top_k = {"deepseek_v3": 3, "qwen3": 8}[name]
    assert {count.sum().item() for count in found} == {args[0].numel() * top_k}

    report = only_report()
    assert (report.wiring_before, report.outcome) == ("standard", Outcome.REWIRED)
    rewired = {"full": ("attention", "moe", "mlp"), "attention": ("attention",), "mlp": ("moe", "mlp")}[connectivity]
    expected_rows = [(row[0], row[4] if row[0].split(".")[0] in rewired else ()) for row in table[: 2 * layers]]
    assert [(row.name, report.left_out.get(row.name, ())) for row in report.rows] == expected_rows
    standard, standard_gradients = run_with_gradients(model, model, *args)
    assert relative_difference(output, standard) > 1e-4
    assert any(relative_difference(gradients[key], standard_gradients[key]) > 1e-3 for key in gradients)


def test_training_step_of_the_model_as_written() -> None:
    """Under "none" nothing changes: outputs, gradients and counts are those of eager mode, bit for bit."""
    model, args = titan.build_deepseek_v3(slice(2), torch.float64)
    model.train()
    expected, expected_gradients = run_with_gradients(model, model, *args)
    expected_counts = counts(model)
    output, gradients = run_with_gradients(compiled(model, "none"), model, *args)
    assert torch.equal(output, expected)
    assert_gradients_close(gradients, expected_gradients, 0.0)
    assert all(map(torch.equal, counts(model), expected_counts))
    assert only_report().outcome is Outcome.UNCHANGED


def test_one_block_at_a_time_is_refused() -> None:
    """As torchtitan's own trainer compiles: no graph has two layers."""
    model, args = titan.build_deepseek_v3(slice(2))
    for layer in model.layers.values():
        layer.compile(backend="farskip", fullgraph=True)
    with torch.no_grad(), pytest.raises(farskip_compile.errors.PartialModelError, match="one by one"):
        model(*args)


def test_explain_on_the_command_line() -> None:
    result = CliRunner().invoke(app, ["explain", "tests.models.titan:build_deepseek_v3"], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    assert "standard -> full, verified" in result.stdout
    shown = [name for line in result.stdout.splitlines() for name in line.split()]
    assert all(row[0] in shown for row in DEEPSEEK_V3)
