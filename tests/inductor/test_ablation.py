# SPDX-License-Identifier: Apache-2.0
"""Passes inside Inductor that are left out: the same bits, another order, and a report that says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import nn

import farskip_compile
from farskip_compile import FarSkipConfig
from farskip_compile.compiler.ranks.common_options import common_options
from tests.distributed.ranks import run_ranks
from tests.inductor.test_generated_order import quick_link

ABLATIONS: tuple[tuple[str, ...], ...] = (
    (),
    ("schedule_graph",),
    ("pin_waits", "pin_products"),
    ("schedule_kernels",),
    ("schedule_graph", "pin_waits", "pin_products", "schedule_kernels"),
)


class Beside(nn.Module):
    """An exchange between two products, and beside it products to hide it; no kernel that has to be built."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight, self.other = (nn.Parameter(torch.randn(16, 16, generator=generator)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        received = funcol.all_to_all_single(x @ self.weight, None, None, dist.group.WORLD)
        return received @ self.weight, (x @ self.other) @ self.other


def ablated_on_rank(rank: int, world_size: int) -> list[tuple[list[torch.Tensor], dict[str, Any]]]:
    found = []
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(rank))
    for names in ABLATIONS:
        torch.compiler.reset()
        farskip_compile.reports().clear()
        model = Beside()
        options = {"connectivity": "none", "disable_passes": names, "profile": quick_link(), "memory_increase": 4.0}
        outputs = torch.compile(model, backend="farskip", fullgraph=True, options=options)(x)
        sum(output.square().sum() for output in outputs).backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        forward, _ = farskip_compile.reports().schedules
        found.append(([tensor.detach() for tensor in (*outputs, *gradients)], forward.to_json()))
    return found


def test_an_ablated_compile_gives_the_same_bits_and_says_what_was_left_out() -> None:
    for found in run_ranks(ablated_on_rank, 2, timeout=400):
        (expected, whole), *others = found
        reports = dict(zip(ABLATIONS[1:], (report for _, report in others), strict=True))
        for tensors, _ in others:
            assert all(map(torch.equal, tensors, expected))
        assert whole["level"] == "kernels"
        assert whole["waits_pinned"] == 1
        assert reports["schedule_graph",]["unscheduled"] is None
        assert reports["schedule_graph",]["level"] == "kernels"
        assert reports["pin_waits", "pin_products"]["waits_pinned"] == 0
        assert reports["schedule_kernels",]["level"] == "graph"
        assert reports[ABLATIONS[-1]]["after"] is None


@pytest.mark.parametrize("names", [(), ("pin_waits",)])
def test_the_ranks_compare_what_is_left_out(names: tuple[str, ...]) -> None:
    assert common_options(FarSkipConfig(disable_passes=names), None, "")["disable_passes"] == list(names)
