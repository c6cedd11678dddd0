# SPDX-License-Identifier: Apache-2.0
"""`capture`: the rewired graph of a model, compiled or not, and nothing is computed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from farskip_compile import FarSkipConfig, Outcome, backend
from farskip_compile._compat.modules import is_compiled
from farskip_compile.errors import NoResidualStackError, PartialModelError
from farskip_compile.models import build
from farskip_compile.passes.graph import ops
from farskip_compile.passes.residual import read_table
from farskip_compile.passes.residual.tags import CUSTOM, KEY, terms_of
from farskip_compile.tools.capture import capture, is_compiled_inside

IDS = torch.zeros(1, 5, dtype=torch.long)
EAGER = FarSkipConfig(inner="eager")


def small():
    return build("mixtral", layers=("moe", "moe"))


def test_the_graph_is_the_rewired_one():
    found = capture(small(), (IDS,), config=EAGER)
    table = read_table(found.module.graph).table
    assert [(row.name, row.reads) for row in table.rows] == [(row.name, row.reads) for row in found.report.rows]
    assert found.report.rewired_rows == ("moe.0", "attention.1", "moe.1")
    assert found.backend.config is EAGER


def test_each_node_says_what_it_is_a_part_of():
    nodes = capture(small(), (IDS,), config=EAGER).module.graph.nodes
    by_term = {term for node in nodes for term in terms_of(node)}
    assert by_term == {"e", "a0", "r0", "a1", "r1"}
    attention = next(node for node in nodes if ops.is_attention(node))
    assert terms_of(attention) == ("a0",)
    head = [node for node in nodes if node.op != "output"][-1]
    assert terms_of(head) == ()


def test_what_a_user_has_noted_stays():
    class Annotated(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = small()

        def forward(self, ids):
            with torch.fx.traceback.annotate({"mine": 1}):
                return self.model(ids)

    nodes = capture(Annotated(), (IDS,), config=EAGER).module.graph.nodes
    customs = [node.meta.get(CUSTOM, {}) for node in nodes]
    assert any({"mine", KEY} <= set(custom) for custom in customs)


def test_the_models_own_configuration_is_in_force():
    reports = []
    model = torch.compile(small(), backend=backend(connectivity="mlp", inner="eager", on_report=reports.append))
    found = capture(model, (), {"ids": IDS})
    assert found.report.config["connectivity"] == "mlp"
    assert found.backend.config.connectivity == "mlp"
    assert reports == [], "what is only looked at is not reported to the user"
    model(IDS)
    assert len(reports) == 1
    assert capture(model, (IDS,), config=EAGER).report.config["connectivity"] == "full"


def test_a_stack_behind_another_graph_is_found():
    """Without fullgraph: what stands in front of the break runs."""

    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = small()

        def forward(self, ids):
            ids = (ids + 1) % 7
            torch._dynamo.graph_break()
            return self.model(ids)

    model = torch.compile(Cut(), backend="farskip", options={"inner": "eager"})
    assert capture(model, (IDS,)).report.outcome is Outcome.REWIRED


def test_then_sees_the_graph_while_it_is_compiled():
    seen = []
    capture(small(), (IDS,), config=EAGER, then=lambda found, inputs: seen.append((found.report.outcome, len(inputs))))
    assert [outcome for outcome, _ in seen] == [Outcome.REWIRED]
    assert seen[0][1] > 1


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (torch.compile(nn.Linear(5, 5), backend="farskip", options={"inner": "eager"}), NoResidualStackError),
        (torch.compile(nn.Linear(5, 5), backend="eager"), PartialModelError),
        (nn.Linear(5, 5), PartialModelError),
    ],
)
def test_no_stack(model, kind):
    with pytest.raises(kind):
        capture(model, (torch.zeros(1, 5),))
    with pytest.raises(NoResidualStackError):
        capture(model, (torch.zeros(1, 5),), config=EAGER)


def test_a_model_that_catches_everything_does_not_run_on():
    class Catches(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = torch.compile(small(), backend="farskip", options={"inner": "eager"})

        def forward(self, ids):
            try:
                return self.model(ids)
            except Exception:
                pytest.fail("it was caught")

    assert capture(Catches(), (IDS,)).report.outcome is Outcome.REWIRED


def test_what_counts_as_compiled():
    model = small()
    assert not is_compiled_inside(model)
    assert not is_compiled_inside(model.forward)
    assert is_compiled_inside(nn.Sequential(torch.compile(model)))
    assert is_compiled(torch.compile(lambda x: x))
    model.layers[0].attention.compile()
    assert is_compiled_inside(model)
    kept_out = small()
    kept_out.forward = torch.compiler.disable(kept_out.forward)
    assert not is_compiled_inside(kept_out)
