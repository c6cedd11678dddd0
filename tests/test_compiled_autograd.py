# SPDX-License-Identifier: Apache-2.0
"""`torch._dynamo.config.compiled_autograd`: the backend is called with backward graphs, too."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import farskip_compile
from farskip_compile import Outcome
from farskip_compile.models import FarSkipForm, build
from tests.compare import assert_gradients_close

IDS = torch.arange(12).view(2, 6)


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_compiled_autograd_hands_over_a_backward_graph(inner: str) -> None:
    """It is no model; that the gradients are those of the rewired one was decided by the forward graph."""

    model = build("deepseek_v3", vocab_size=32, hidden_size=32, layers=("dense", "moe"), dtype=torch.float64)

    def step(tokens: torch.Tensor) -> torch.Tensor:
        loss = model(tokens).square().sum()
        loss.backward()
        return loss

    def gradients(call: Any) -> dict[str, torch.Tensor]:
        model.zero_grad()
        call(IDS)
        return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}

    form = FarSkipForm(model)
    expected = gradients(lambda tokens: form(tokens).square().sum().backward())
    with torch._dynamo.config.patch(compiled_autograd=True):
        found = gradients(torch.compile(step, backend="farskip", options={"inner": inner}))
    assert_gradients_close(found, expected, 1e-12)
    forward, backward = farskip_compile.reports().compiles
    assert (forward.outcome, backward.outcome) == (Outcome.REWIRED, Outcome.NO_STACK)
    assert "backward graph of compiled autograd" in backward.reason
