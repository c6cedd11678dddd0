# SPDX-License-Identifier: Apache-2.0
"""Guarded models, where transformers is not installed. The class of fault: a guard that is lost, or that changes what
it guards."""

from __future__ import annotations

import copy
import inspect
import pickle
import sys
from typing import Any

import pytest
import torch
from torch import nn

from farskip_compile import OriginalWiringError, unguard
from farskip_compile.compiler.guard.forward import guard, is_guarded
from farskip_compile.models import build


def test_a_model_is_guarded_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    model, ids = build("mixtral", layers=("moe",), vocab_size=32, hidden_size=32), torch.ones(1, 4, dtype=torch.long)
    expected = model(ids)
    guard(model, None, refusal=("it is trained rewired", "call it"))
    with pytest.raises(OriginalWiringError, match="it is trained rewired") as caught:
        model(ids)
    assert caught.value.way_out == "call it"
    unguard(model)
    assert torch.equal(model(ids), expected)


REFUSAL = ("it is trained rewired", "call it")


class Halved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor, *, times: int = 2) -> torch.Tensor:
        return x * self.weight / times


def refused(call: Any) -> None:
    with pytest.raises(OriginalWiringError, match="it is trained rewired"):
        call(torch.ones(3))


def test_copies_and_pickles_are_guarded_with_their_own_weights() -> None:
    model = Halved()
    guard(model, None, refusal=REFUSAL)
    made = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(nn.Sequential(model))[0]]
    for one in made:
        assert is_guarded(one)
        refused(one)
        refused(one.forward)
        with torch.no_grad():
            one.weight.fill_(4)
        unguard(one)
        assert torch.equal(one(torch.ones(3)), torch.full((3,), 2.0))
        assert not is_guarded(one)
    refused(model)


def test_a_forward_that_others_gave_is_called_and_put_back() -> None:
    model = Halved()
    plain = model.forward
    given = model.forward = lambda x: plain(x, times=1)
    guard(model, None, refusal=REFUSAL)
    guard(model, None, refusal=("another reason", ""))  # the first says more
    refused(model)
    assert torch.equal(traced(model)(torch.ones(3)), torch.ones(3))
    unguard(model)
    assert vars(model)["forward"] is given


def test_it_looks_like_the_forward_that_it_guards() -> None:
    model = Halved()
    guard(model, None, refusal=REFUSAL)
    assert inspect.signature(model.forward) == inspect.signature(Halved().forward)
    assert model.forward.__name__ == "forward"
    assert not hasattr(model.forward, "__wrapped__")  # accelerate would take it off


def test_only_this_backend_may_trace_it() -> None:
    model = Halved()
    guard(model, None, refusal=REFUSAL)
    torch.compiler.reset()
    refused(torch.compile(model, backend="eager"))
    torch.compiler.reset()
    assert torch.equal(traced(model)(torch.ones(3), times=4), torch.full((3,), 0.25))
    refused(model)


def traced(model: nn.Module) -> Any:
    return torch.compile(model, backend="farskip", fullgraph=True, options={"inner": "eager"})
