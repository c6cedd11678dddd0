# SPDX-License-Identifier: Apache-2.0
"""Each collective knows the terms that it is a part of, forward and backward, however it came about."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed._functional_collectives as funcol
import torch.utils.checkpoint
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition

from farskip_compile import FarSkipConfig
from farskip_compile.models import build
from farskip_compile.passes.graph import comms
from farskip_compile.passes.residual.tags import terms_of
from farskip_compile.tools.capture import capture
from tests.graphs import Experts, Layer, Stack
from tests.graphs import ids as few_ids
from tests.inductor.test_generated_order import LAYOUTS, SMALL, parallel

IDS = torch.zeros(1, 16, dtype=torch.long)


def terms(model: nn.Module, ids: torch.Tensor = IDS, **options: Any) -> tuple[list[str], list[str]]:
    """Those of the collectives of the forward and of the backward graph, in order."""
    found: list[list[str]] = []

    def look(module: torch.fx.GraphModule, _: Any) -> Any:
        found.append(["+".join(terms_of(node)) for node in module.graph.nodes if comms.is_collective(node)])
        return lambda *args: None

    differentiate = aot_autograd(fw_compiler=look, bw_compiler=look, partition_fn=min_cut_rematerialization_partition)
    with torch._functorch.config.patch(force_non_lazy_backward_lowering=True):
        capture(
            model,
            (ids,),
            config=FarSkipConfig(inner="eager", **options),
            then=lambda captured, inputs: differentiate(captured.module, inputs),
        )
    forward, backward = found
    return forward, backward


def model_in(layout: str, group: Any, name: str = "deepseek_v3", **more: Any) -> nn.Module:
    return build(name, parallel=parallel(layout, group), **{**SMALL, **more}).train()


@pytest.mark.parametrize(
    ("name", "layout", "connectivity"),
    [*((name, layout, "full") for name, layout in LAYOUTS.items() if layout != "tp"), ("mixtral", "padded", "none")],
)
def test_expert_parallel(name: str, layout: str, connectivity: str, two_ranks: Any) -> None:
    """All-to-all with and without drops, all-gather and reduce-scatter."""
    forward, backward = terms(model_in(layout, two_ranks, name), connectivity=connectivity)
    assert set(forward) == set(backward) == {"r0", "r1"}
    assert forward == sorted(forward)
    assert backward == sorted(backward, reverse=True)


def test_reductions_of_sums(two_ranks: Any) -> None:
    """Tensor parallelism: each sub-block has an all-reduce; that of a sum belongs to all in it."""
    model = model_in("tp", two_ranks, shared_experts=1)
    forward, backward = terms(model, connectivity="none")
    assert forward == ["a0", "r0+s0", "a1", "r1+s1"]
    assert set(backward) == set(forward)
    forward, backward = terms(model)
    assert sorted(forward) == ["a0", "a1", "r0", "r1+s1", "s0"], "parted where they must come apart"
    assert backward == ["r1+s1", "r0", "s0"], "a1 has the gradient of r1 + s1, and a0 that of s0: they are reduced once"
    forward, _ = terms(model, merge_reductions=True)
    assert sorted(forward) == ["a0+s0", "a1", "r0", "r1+s1"], "merged"


class Checkpointed(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        model = self.model
        x = model.embed(ids)
        rope = model.positions(x, ids, None)
        for layer in model.layers:
            x = torch.utils.checkpoint.checkpoint(layer, x, rope, use_reentrant=False)
        return model.head(x, ids.shape[1])


def test_what_is_recomputed(two_ranks: Any) -> None:
    forward, backward = terms(Checkpointed(model_in("padded", two_ranks)))
    assert forward == ["r0", "r0", "r1", "r1"]
    assert len(backward) > len(forward)
    assert set(backward) == {"r0", "r1"}


class Exchange(torch.autograd.Function):
    """An exchange that the user has written with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return funcol.all_to_all_single(x, None, None, torch.distributed.group.WORLD).clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return funcol.all_to_all_single(gradient.contiguous(), None, None, torch.distributed.group.WORLD).clone()


class ExchangingExperts(Experts):
    def forward(self, h: torch.Tensor) -> torch.Tensor:
        shape = h.shape
        exchanged = Exchange.apply(h.flatten(0, 1)).view(shape)
        return Exchange.apply(super().forward(exchanged).flatten(0, 1)).view(shape)


@pytest.mark.usefixtures("two_ranks")
def test_inside_of_an_autograd_function() -> None:
    forward, backward = terms(Stack(lambda: Layer(ExchangingExperts())), few_ids())
    assert forward == ["r0", "r0", "r1", "r1"]
    assert backward == ["r1", "r1", "r0", "r0"]


class Shared(nn.Module):
    """One gather for two readers of the stream, and one collective of the stream's end, which is nobody's."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = Stack(lambda: Layer(Experts()))
        self.beside = nn.Linear(8, 8, bias=False).double()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        stack = self.stack
        x = stack.embedding(ids)
        for layer in stack.layers:
            x = x + layer.attention(layer.norm1(x))
            h = funcol.all_reduce(layer.norm2(x), "sum", torch.distributed.group.WORLD)
            x = x + (layer.feed_forward(h) + self.beside(h))
        return stack.head(funcol.all_reduce(stack.norm(x), "sum", torch.distributed.group.WORLD))


@pytest.mark.usefixtures("two_ranks")
def test_what_several_terms_need_and_what_none_does() -> None:
    forward, _ = terms(Shared(), few_ids(), connectivity="none")
    assert forward == ["r0+s0", "r1+s1", ""]
