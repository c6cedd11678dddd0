# SPDX-License-Identifier: Apache-2.0
"""Collectives that a graph does not show yet: in bodies of functions, and between placements of a DTensor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import fx, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from farskip_compile.passes.graph.hidden_collectives import collectives_of


@pytest.fixture
def four_ranks() -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield
    dist.destroy_process_group()


def found(module: nn.Module, *args: torch.Tensor) -> list[str]:
    """What the nodes of the Dynamo graph of `module` stand for."""
    names: list[str] = []

    def keep(graph: fx.GraphModule, inputs: Any) -> Any:
        names.extend(name for node in graph.graph.nodes for name in collectives_of(node))
        return graph.forward

    torch.compile(module, backend=keep, fullgraph=True)(*args)
    return names


CASES = [
    (Partial(), Replicate(), ["all_reduce"]),
    (Partial(), Shard(0), ["reduce_scatter_tensor"]),
    (Shard(0), Replicate(), ["all_gather_into_tensor"]),
    (Shard(0), Shard(1), ["all_to_all_single"]),
    (Shard(1), Shard(1), []),
    (Replicate(), Shard(0), []),
]


@pytest.mark.usefixtures("four_ranks")
@pytest.mark.parametrize(("before", "after", "expected"), CASES)
def test_redistribution(before: Any, after: Any, expected: list[str]) -> None:
    mesh = init_device_mesh("cpu", (4,))

    class Moved(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return DTensor.from_local(x, mesh, [before]).redistribute(placements=[after]).to_local() + 1

    assert found(Moved(), torch.ones(4, 4)) == expected


@pytest.mark.usefixtures("four_ranks")
def test_full_tensor_on_two_dimensions() -> None:
    mesh = init_device_mesh("cpu", (2, 2))

    class Whole(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return DTensor.from_local(x, mesh, [Partial(), Shard(0)]).full_tensor() + 1

    assert found(Whole(), torch.ones(4, 4)) == ["all_reduce", "all_gather_into_tensor"]


@pytest.mark.usefixtures("four_ranks")
def test_the_forward_of_an_autograd_function_counts() -> None:
    group = dist.group.WORLD

    class Reduced(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return functional.all_reduce(x, "sum", group)

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return functional.all_gather_tensor(gradient, 0, group)[: gradient.shape[0]]

    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Reduced.apply(x * 2) + functional.reduce_scatter_tensor(x.repeat(4, 1), "sum", 0, group)

    assert found(Model(), torch.ones(4, 4, requires_grad=True)) == ["all_reduce", "reduce_scatter_tensor"]
