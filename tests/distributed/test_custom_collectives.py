# SPDX-License-Identifier: Apache-2.0
"""Collectives by operators of the user on real gloo ranks: the same results, and orders that are compared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

import farskip_compile
from farskip_compile.errors import OrderMismatchError
from tests.distributed.ranks import run_ranks
from tests.economy import scalar_kernels
from tests.inductor.custom_operators import IDS, Model, by_hand, declare_all


def compare_on_rank(rank: int, world_size: int, how: str) -> dict[str, Any]:
    torch.compiler.reset()
    declare_all()
    model = Model(how, dist.group.WORLD.group_name)  # type: ignore[union-attr]
    ids = (IDS + rank) % 20
    run = torch.compile(model, backend="farskip", fullgraph=True)
    parameters = list(model.parameters())
    expected = by_hand(model, ids)
    wanted = torch.autograd.grad(expected.square().sum(), parameters)
    with scalar_kernels():
        found = run(ids)
        gradients = torch.autograd.grad(found.square().sum(), parameters)
    forward, backward = farskip_compile.reports().schedules[-2:]
    return {
        "output": float((found - expected).abs().max().detach()),
        "gradients": max(float((one - right).abs().max()) for one, right in zip(gradients, wanted, strict=True)),
        "flights": (len(forward.flights), len(backward.flights)),
        "blocking": (forward.blocking, backward.blocking),
    }


@pytest.mark.parametrize("how", ["in two", "in one"])
def test_ranks_compute_what_the_form_by_hand_does(how: str) -> None:
    for found in run_ranks(compare_on_rank, 2, how):
        assert found["output"] < 1e-5
        assert found["gradients"] < 1e-4
        assert found["flights"] == ((6, 6) if how == "in two" else (0, 6))  # gradients are exchanged in two
        assert found["blocking"] == ((() if how == "in two" else ("6 x farskip_tests::swap",)), ())


def differ_on_rank(rank: int, world_size: int) -> str:
    torch.compiler.reset()
    declare_all()
    model = Model("in two" if rank else "in one", dist.group.WORLD.group_name)  # type: ignore[union-attr]
    with torch.no_grad(), pytest.raises(OrderMismatchError) as raised:
        torch.compile(model, backend="farskip", fullgraph=True)(IDS)
    return str(raised.value)


def test_ranks_that_call_other_operators_raise_instead_of_hanging() -> None:
    for text in run_ranks(differ_on_rank, 2):
        assert "swap float32" in text
        assert "send float32" in text
