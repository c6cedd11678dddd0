# SPDX-License-Identifier: Apache-2.0
"""Lightning Fabric trains a model rewired, compiled before or after `setup`, on one rank and on two."""

from __future__ import annotations

import os
from typing import Any

import lightning
import pytest
import torch
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.fabric.strategies import DDPStrategy

import farskip_compile
from farskip_compile import CompileReport
from farskip_compile.models import FarSkipForm
from tests.distributed.ranks import run_ranks
from tests.integrations.beside.lightning.steps import batches, equal, loss_of, optimizer_of, small, trained_by_hand

REWIRED = ["rewired 3 of 4 sub-blocks (2 layers, 2 MoE): standard -> full, verified"]


def trained(how: str, fabric: lightning.Fabric) -> tuple[torch.nn.Module, list[str]]:
    """The model after its steps, and what is said of its graphs."""
    model, reports = small(), list[CompileReport]()
    options: dict[str, Any] = {"backend": "farskip", "fullgraph": True}
    options["options"] = {"inner": "eager", "on_report": reports.append}
    optimizer = optimizer_of(model)
    if how == "in place":
        model.compile(**options)
    given = torch.compile(model, **options) if how == "wrapped, before" else model
    module, optimizer = fabric.setup(given, optimizer)
    if how == "wrapped, after":
        module = torch.compile(module, **options)
    for ids in batches(fabric.global_rank):
        optimizer.zero_grad()
        fabric.backward(loss_of(module(ids), ids))
        optimizer.step()
    return model, [report.summary() for report in reports]


@pytest.mark.parametrize("how", ["in place", "wrapped, before", "wrapped, after"])
def test_one_process(how: str) -> None:
    model, said = trained(how, lightning.Fabric(accelerator="cpu", devices=1))
    assert said == REWIRED
    assert equal(model, trained_by_hand())


def on_rank(rank: int, world_size: int) -> tuple[bool, list[str], str, str]:
    """Trained in place; then the errors of the graph splitting, and of a wrapper that Fabric compiles around DDP."""
    torch._dynamo.config.optimize_ddp = False
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), GROUP_RANK="0")
    strategy = DDPStrategy(process_group_backend="gloo")
    fabric = lightning.Fabric(
        accelerator="cpu", devices=world_size, strategy=strategy, plugins=[TorchElasticEnvironment()]
    )
    fabric.launch()
    model, said = trained("in place", fabric)
    errors = []
    for how, split in (("in place", True), ("wrapped, before", False)):
        torch.compiler.reset()
        torch._dynamo.config.optimize_ddp = split
        try:
            trained(how, fabric)
        except (farskip_compile.errors.DDPSplitError, torch._dynamo.exc.Unsupported) as error:
            errors.append(type(error).__name__)
    return equal(model, trained_by_hand(ranks=world_size)), said, *errors


def test_two_ranks() -> None:
    for found in run_ranks(on_rank, 2):
        assert found == (True, REWIRED, "DDPSplitError", "Unsupported")


def test_a_backend_can_be_copied() -> None:
    """Once Lightning is imported, `torch.compile` copies what it is given."""
    assert torch.compile.__module__ != "lightning", "it keeps the name"
    model, ids = small().eval(), batches()[0]
    assert farskip_compile.explain(model, ids).refusal is None
    compiled = torch.compile(model, backend=farskip_compile.backend(inner="eager"), fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(ids), FarSkipForm(model)(ids))
