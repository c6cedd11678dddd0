# SPDX-License-Identifier: Apache-2.0
"""Whatever runs a model to look at it leaves it alone, to the byte: `prepare`, comparisons, the search for a head.

Class of fault: a copy that is run shares memory, tables or objects with the user's model, and a forward writes there.
"""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from farskip_compile import prepare
from farskip_compile.healing.causal.asking import Asking
from farskip_compile.healing.causal.batches import as_batch
from farskip_compile.testing import assert_equivalent
from tests.state import everything_of

Way = Callable[[Any], Any]
WAYS: dict[str, tuple[Way, ...]] = {
    "memory": (
        lambda m: m.bias.add_(0.5),
        lambda m: m.gate.bias.data.add_(0.5),
        lambda m: m.experts[0].bias.__setitem__(0, 3.0),
        lambda m: m.experts[1].bias.view(2, 4)[1].mul_(2.0),
        lambda m: torch.add(m.experts[2].bias, 0.5, out=m.experts[2].bias.data),
        lambda m: torch._foreach_add_([m.experts[3].bias.data, m.gate.weight.data], 0.5),
        lambda m: m.load.add_(1.0),
    ),
    "compiled": (lambda m: torch.compile(lambda x: x.add_(0.5), backend="eager")(m.bias),),
    "tensors": (
        lambda m: setattr(m.gate.bias, "data", m.gate.bias + 0.5),
        lambda m: setattr(m, "bias", nn.Parameter(m.bias + 0.5, requires_grad=False)),
        lambda m: m.gate.weight.requires_grad_(False),
        lambda m: setattr(m, "load", m.load + 1.0),
    ),
    "objects": (
        lambda m: setattr(m, "calls", m.calls + 1),
        lambda m: m.seen.append(1),
        lambda m: m.eval(),
        lambda m: (torch.rand(1), random.random(), np.random.rand()),
        lambda m: m.gate.register_forward_hook(lambda *_: None),
    ),
}
"""What a forward may do to its module, by what it changes."""


class Experts(nn.Module):
    """Two of four experts for each row; in training mode, `ways` are done to the module."""

    def __init__(self, *ways: Way) -> None:
        super().__init__()
        self.ways = ways
        self.experts = nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])
        self.gate = nn.Linear(8, 4)
        self.bias = nn.Parameter(torch.randn(4), requires_grad=False)
        self.register_buffer("load", torch.zeros(4))
        self.calls, self.seen = 0, [0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, 8)
        weights, chosen = (self.gate(rows) + self.bias).softmax(-1).topk(2)
        out = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            at, k = torch.where(chosen == number)
            if at.numel() == 0:
                continue
            out = out.index_add(0, at, weights[at, k, None] * expert(rows[at]))
        if self.training:
            with torch.no_grad():
                for way in self.ways:
                    way(self)
        return out.view_as(x)


@pytest.mark.parametrize("name", WAYS)
def test_prepare_leaves_what_a_forward_writes_alone(name: str) -> None:
    torch.manual_seed(0)
    model = Experts(*WAYS[name])
    before = everything_of(model)
    prepare(model).undo()
    assert everything_of(model) == before


def test_a_closure_over_the_module_itself_is_undone_too() -> None:
    """As of libraries that replace the forward of a module by a function that calls it: a copy calls the original."""
    torch.manual_seed(0)
    model = Experts(lambda copied: copied.reach())
    model.reach = lambda: [way(model) for way in (*WAYS["memory"], WAYS["objects"][0])]
    before = everything_of(model)
    prepare(model).undo()
    assert everything_of(model) == before


@pytest.mark.parametrize("name", ["memory", "tensors"])
def test_the_call_with_example_inputs_leaves_parameters_and_buffers_alone(name: str) -> None:
    torch.manual_seed(0)
    model, x = Experts(*WAYS[name]), torch.randn(2, 5, 8)
    before = everything_of(model)
    prepare(model, x).undo()
    assert everything_of(model) == before


def test_what_is_written_into_parameters_does_not_stand_between_two_runs() -> None:
    """Original and rewritten loop begin with the same numbers, though each run writes: the loop is replaced."""
    torch.manual_seed(0)
    (change,) = prepare(Experts(*WAYS["memory"])).changes
    assert change.what == "loop over experts in the model itself"


class Head(nn.Module):
    """A causal model that updates a parameter in each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(16, 8), nn.Linear(8, 16)
        self.bias = nn.Parameter(torch.zeros(8), requires_grad=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(ids) + self.bias
        self.bias.data.add_(1.0)
        return self.head(hidden)


def test_looking_for_the_head_leaves_parameters_alone() -> None:
    model = Head()
    before = everything_of(model)
    assert Asking(model, as_batch(torch.zeros(1, 8, dtype=torch.long), torch.device("cpu"))).head is not None
    assert everything_of(model) == before


def test_comparisons_compare_parameters_that_are_written_and_leave_them_alone() -> None:
    """Two models that share a parameter: the first must not change what the second one computes with."""
    model = Head()
    same = copy.copy(model)
    before, ids = everything_of(model), torch.zeros(1, 8, dtype=torch.long)
    assert_equivalent(model, same, ids)
    assert everything_of(model) == before
    other = copy.copy(model)
    other.forward = functools.partial(lambda m, ids: m.head(m.embed(ids) + m.bias), other)  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="parameter bias afterwards"):
        assert_equivalent(model, other, ids)
