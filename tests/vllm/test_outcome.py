# SPDX-License-Identifier: Apache-2.0
"""What workers assert once they are warm, and what graphs say of themselves: without vLLM."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import fx, nn

from farskip_compile.errors import OriginalWiringError, VerificationError
from farskip_compile.manifest import Manifest
from farskip_compile.passes.graph import ops
from farskip_compile.vllm import outcome, rewiring
from farskip_compile.vllm.asked import Asked, ServingOptions

FULL = Asked(ServingOptions(connectivity="full"), None, "a test")


class Compiled(nn.Module):
    do_not_compile = False

    def __call__(self) -> str:
        return "compiled"


def worker(model: nn.Module) -> Any:
    return SimpleNamespace(rank=0, model_runner=SimpleNamespace(get_model=lambda: model))


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(outcome, "ran", found)
    return found


def said(what: str, asked: Asked = FULL) -> dict[str, Any]:
    return {"digest": asked.digest, "outcome": what, "said": what}


def test_a_worker_that_ran_rewired_code(ran, caplog):
    ran += [said("no residual stack"), said("rewired")]
    with caplog.at_level("INFO", logger="vllm.farskip"):
        outcome.check(worker(Compiled()), FULL)
    assert "rank 0: rewired (asked by a test)" in caplog.text


@pytest.mark.parametrize(
    ("what", "model", "reason"),
    [
        ([], Compiled(), "none of its compiled code has run"),
        ([], nn.Linear(1, 1), "compiles no part of its class"),
        (["no residual stack"], Compiled(), "no graph of it that ran has a residual stack"),
        (["refused, compiled unchanged"], Compiled(), "asks for a rewired model"),
    ],
)
def test_a_worker_that_did_not(ran, what, model, reason):
    ran += map(said, what)
    with pytest.raises(OriginalWiringError, match=reason):
        outcome.check(worker(model), FULL)


def test_a_worker_whose_model_is_not_compiled(ran):
    model = Compiled()
    model.do_not_compile = True
    with pytest.raises(OriginalWiringError, match="does not compile Compiled in this configuration"):
        outcome.check(worker(model), FULL)


def test_a_worker_that_ran_stale_code(ran):
    ran.append(said("rewired", Asked(ServingOptions(connectivity="mlp"), None, "yesterday")))
    with pytest.raises(VerificationError, match="stale compiled code ran"):
        outcome.check(worker(Compiled()), FULL)


def test_a_manifest_of_which_nothing_was_rewired(ran):
    asked = Asked(ServingOptions(), Manifest("full"), "a manifest")
    ran.append(said("unchanged as asked", asked))
    with pytest.raises(OriginalWiringError, match="nothing was rewired"):
        outcome.check(worker(Compiled()), asked)


def test_from_then_on_no_step_runs_uncompiled(ran, monkeypatch):
    context = ModuleType("vllm.forward_context")
    context.is_forward_context_available = lambda: True
    context.get_forward_context = lambda: SimpleNamespace(skip_compiled=skipped)
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.forward_context", context)

    class Model(Compiled):
        pass

    ran.append(said("rewired"))
    outcome.check(worker(model := Model()), FULL)
    outcome.check(worker(model), FULL)
    skipped = False
    assert model() == "compiled"
    skipped = True
    with pytest.raises(OriginalWiringError, match="a step of Model uncompiled"):
        model()
    context.is_forward_context_available = lambda: False
    assert model() == "compiled"


def test_a_graph_says_what_it_is_each_time_another_one_runs(monkeypatch):
    monkeypatch.setattr(rewiring, "ran", [])
    monkeypatch.setattr(rewiring, "_texts", set())
    text = json.dumps(said("rewired"))
    for _ in range(2):
        torch.ops.farskip.served(text)
    assert rewiring.ran == [said("rewired")]


def test_what_a_graph_says_is_no_dead_code():
    graph = fx.Graph()
    graph.call_function(torch.ops.farskip.served.default, ("said",))
    graph.output(())
    graph.eliminate_dead_code()
    assert [ops.op_name(node) for node in graph.nodes if node.op == "call_function"] == ["farskip::served"]
