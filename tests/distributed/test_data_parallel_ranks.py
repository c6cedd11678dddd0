# SPDX-License-Identifier: Apache-2.0
"""Data parallelism around models of transformers: DDP, FSDP at the root, sharding inside of the graph; and refusals.

The oracle is the whole model in eager mode, its gradients averaged over the ranks, each of which has tokens of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn.utils import parametrize

import farskip_compile
from farskip_compile.errors import PartialModelError
from tests.distributed.ranks import run_ranks

pytest.importorskip("transformers")

from tests.distributed.hf_ranks import Run, build, difference, oracle, run_with_gradients

ROUNDING = 1e-6
LEFT_OUT = {"moe.0": ("a0",), "attention.1": ("r0",), "moe.1": ("a1",)}


def tokens(rank: int) -> torch.Tensor:
    return torch.randint(0, 64, (2, 7), generator=torch.Generator().manual_seed(rank))


def model_in_float64() -> Any:
    model = build("qwen2_moe", 2).double().train()
    model.set_experts_implementation("batched_mm")
    return model


def averaged(rank: int, world_size: int) -> Run:
    """The oracle's output for this rank's tokens, and its gradients averaged over all ranks."""
    whole = model_in_float64()
    output, gradients = run_with_gradients(oracle(whole), whole, tokens(rank))
    for gradient in gradients.values():
        dist.all_reduce(gradient)
        gradient /= world_size
    return output, gradients


class Gathered(nn.Module):
    """A sharded parameter, whole while it is used; its gradient is averaged and sharded again."""

    def forward(self, shard: torch.Tensor) -> torch.Tensor:
        assert isinstance(shard, DTensor)
        return shard.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial("avg")])


def shard_inside_the_graph(model: nn.Module, mesh: Any) -> None:
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            shard = nn.Parameter(distribute_tensor(parameter.data, mesh, [Shard(0)]))
            module.register_parameter(name, shard)
            parametrize.register_parametrization(module, name, Gathered(), unsafe=True)


def parallel(how: str, world_size: int) -> tuple[nn.Module, Callable[..., Any]]:
    """A model, and its compiled forward, as users write them."""
    model: Any = model_in_float64()
    mesh = init_device_mesh("cpu", (world_size,))
    whole = {"backend": "farskip", "fullgraph": True, "options": {"inner": "eager"}}
    if how == "ddp around":
        torch._dynamo.config.optimize_ddp = False
        model = nn.parallel.DistributedDataParallel(model)
        return model, torch.compile(model, **(whole | {"fullgraph": False}))
    if how == "ddp inside":
        model.compile(**whole)
        model = nn.parallel.DistributedDataParallel(model)
        torch._dynamo.config.optimize_ddp = False
        return model, model
    if how == "root":
        fully_shard(model, mesh=mesh)
    elif how in ("layers", "experts"):
        for layer in model.model.layers:
            fully_shard(layer if how == "layers" else layer.mlp.experts, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model, torch.compile(model, **(whole | {"fullgraph": False}))
    elif how == "parametrization":
        shard_inside_the_graph(model, mesh)
    return model, torch.compile(model, **whole)


def original_name(name: str) -> str:
    return name.removeprefix("module.").replace("parametrizations.", "").removesuffix(".original")


def compare_on_rank(rank: int, world_size: int, ways: tuple[str, ...]) -> dict[str, Any]:
    expected = averaged(rank, world_size)
    found: dict[str, Any] = {}
    for how in ways:
        torch.compiler.reset()
        model, compiled = parallel(how, world_size)
        output, gradients = run_with_gradients(lambda ids, call=compiled: call(ids).logits, model, tokens(rank))
        gradients = {original_name(name): gradient for name, gradient in gradients.items()}
        report = farskip_compile.reports().compiles[-1]
        found[how] = {
            "difference": difference((output, gradients), expected),
            "sharded": any(isinstance(gradient, DTensor) for gradient in gradients.values()),
            "left_out": report.left_out,
        }
    return found


WAYS = ("ddp around", "ddp inside", "root", "parametrization")


def test_gradients_are_averaged() -> None:
    for found in run_ranks(compare_on_rank, 2, WAYS, timeout=400):
        for how in WAYS:
            assert max(found[how]["difference"]) < ROUNDING, (how, found)
            assert found[how]["left_out"] == LEFT_OUT, how
            assert found[how]["sharded"] == (how in ("root", "parametrization")), how


def refused_on_rank(rank: int, world_size: int) -> list[tuple[str, str]]:
    """FSDP2 on a part of each layer cuts the model: what compiling says, and what `explain` does."""
    answers = []
    for how in ("layers", "experts"):
        torch.compiler.reset()
        model, compiled = parallel(how, world_size)
        try:
            compiled(tokens(rank))
        except PartialModelError as error:
            answers.append((error.reason, error.way_out))
    refusal = farskip_compile.explain(model, tokens(rank)).refusal
    assert refusal is not None
    return [*answers, (refusal.reason, refusal.way_out)]


def test_fully_shard_on_layers_is_refused() -> None:
    for answers in run_ranks(refused_on_rank, 2, timeout=400):
        assert len(answers) == 3
        for reason, way_out in answers:
            assert "in hooks that Dynamo does not trace" in reason
            assert "shard the root module only" in way_out
            assert "parametrization" in way_out
