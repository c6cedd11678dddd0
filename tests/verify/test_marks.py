# SPDX-License-Identifier: Apache-2.0
"""What the proof does not take on trust: marks of accumulations, how they are written out, and what a write reads.

The class of fault: rewriter and proof share an assumption, so a wrong one is "verified". Each test makes the code under
test wrong in one place, and the compile must end with a `VerificationError`.
"""

from __future__ import annotations

import operator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from farskip_compile.errors import VerificationError
from farskip_compile.passes.normalize import accumulations, puts
from farskip_compile.passes.residual import sums
from tests.handwritten.decoder import Decoder, Experts, token_ids
from tests.handwritten.test_between import STEPS, Stepping, compiled


class IntoShared(Experts):
    """Routed rows are added into what the shared expert returns."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.shared is not None
        weights, chosen = self.choose(x)
        y = self.shared(x)
        index = torch.arange(x.shape[1])
        for number, expert in enumerate(self.experts):
            gate = (weights * (chosen == number)).sum(-1, keepdim=True)
            y = y.index_add(1, index, gate * expert(x))
        return y


def compile_experts(connectivity: object = "full") -> None:
    torch.compiler.reset()
    model = Decoder(IntoShared, layers=2)
    options = {"inner": "eager", "connectivity": connectivity}
    torch.compile(model, backend="farskip", fullgraph=True, options=options)(token_ids())


def test_the_models_are_rewired() -> None:
    compile_experts()
    compiled(Stepping(STEPS["+= at a mask"], 0))


def test_a_mark_that_says_something_else_than_its_accumulation(monkeypatch: pytest.MonkeyPatch) -> None:
    added = accumulations._added

    def twice(node: fx.Node, name: str) -> Any:
        target, (*rest, rows), kwargs = added(node, name) or pytest.fail("an accumulation")
        return target, (*rest, rows), {**kwargs, "alpha": 2}

    monkeypatch.setattr(accumulations, "_added", twice)
    with pytest.raises(VerificationError, match="its arguments do not say"):
        compile_experts()


def test_a_used_mark_that_is_written_out_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    without_shared = {"attention.1": ["s0"]}
    compile_experts(without_shared)
    monkeypatch.setattr(torch, "zeros_like", torch.ones_like)
    with pytest.raises(VerificationError, match="do not add what they added"):
        compile_experts(without_shared)


def test_a_put_that_is_written_out_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    # in this module alone: others, such as SymPy, add by the same function
    monkeypatch.setattr(puts, "operator", SimpleNamespace(**{**vars(operator), "add": torch.sub}))
    with pytest.raises(VerificationError):
        compiled(Stepping(STEPS["+= at a mask"], 0))


def test_a_write_whose_value_still_reads_the_old_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The put is linear in its base for detection, and nobody follows the base through the rows that it puts."""
    read = sums.operands

    def base_alone(node: fx.Node, flow: sums.Dataflow) -> tuple[fx.Node, ...]:
        found = read(node, flow)
        return (node.args[0],) if node.target is torch.index_put else found  # type: ignore[return-value]

    monkeypatch.setattr(sums, "operands", base_alone)
    monkeypatch.setattr(accumulations, "put_of_sum", lambda node: None)
    with pytest.raises(VerificationError, match="does not have the value asked for"):
        compiled(Stepping(STEPS["+= at a mask"], 0))
