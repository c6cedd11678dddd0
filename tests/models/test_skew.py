# SPDX-License-Identifier: Apache-2.0
"""Skewed routers: popular experts by Zipf's law, the same on every rank, and nothing at all without a skew."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.fx.experimental.proxy_tensor import make_fx

import farskip_compile
from farskip_compile import Outcome
from farskip_compile.errors import ConfigError
from farskip_compile.models import FarSkipForm, ParallelConfig, build
from farskip_compile.models.expert_load import load_per_expert
from farskip_compile.models.router import CERTAIN, shares, skew_bias
from tests.compare import relative_difference
from tests.distributed.ranks import run_ranks

ROUTERS = ["deepseek_v3", "qwen3_moe", "llama4"]  # groups of sigmoids; softmax; sigmoids that scale the input
SMALL: dict[str, Any] = {"vocab_size": 128, "hidden_size": 64, "layers": ("moe", "moe"), "experts": 16}


def ids(batch: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 128, (batch, 32), generator=torch.Generator().manual_seed(seed))


def exponent(load: torch.Tensor) -> float:
    """Of the power law that fits the load best: the slope of its logarithm over that of the rank, with the sign off."""
    rank = torch.arange(1, load.numel() + 1).double().log()
    rank, load = rank - rank.mean(), load.double().clamp(min=0.5).log()
    return -((rank @ load) / (rank @ rank)).item()


@pytest.mark.parametrize(("experts", "top_k", "skew"), [(16, 2, 0.5), (64, 6, 2.0), (8, 8, 1.0), (2, 1, 9.0)])
def test_shares_follow_the_law_up_to_certainty(experts: int, top_k: int, skew: float) -> None:
    wanted = shares(experts, top_k, skew)
    assert math.isclose(sum(wanted), top_k)
    assert wanted == sorted(wanted, reverse=True)
    assert wanted[0] <= max(CERTAIN, top_k / experts)
    below = [share for share in wanted if share < max(wanted)]
    first = experts - len(below) + 1
    assert all(math.isclose(below[0] / share, ((first + i) / first) ** skew) for i, share in enumerate(below))
    assert skew_bias(experts, top_k, skew).isfinite().all()


@pytest.mark.parametrize("name", ROUTERS)
def test_load_follows_the_law(name: str) -> None:
    loads = [load_per_expert(build(name, router_skew=skew, **SMALL), ids()) for skew in (0.0, 1.0, 2.0)]
    top_k = build(name, **SMALL).config.top_k
    for load in loads:
        assert load.shape == (2, 16)
        assert load.sum(1).tolist() == [top_k * ids().numel()] * 2
    fitted = [exponent(load.sum(0)) for load in loads]
    assert fitted == pytest.approx([0.0, 1.0, 2.0], abs=0.45), fitted
    first_half = [load[:, :8].sum() / load.sum() for load in loads]
    assert first_half == sorted(first_half)


@pytest.mark.parametrize("name", ROUTERS)
def test_no_skew_no_node_and_no_other_weights(name: str) -> None:
    plain, skewed = build(name, **SMALL), build(name, router_skew=1.0, **SMALL)
    assert [key for key, _ in plain.named_buffers()] == [
        key for key, _ in skewed.named_buffers() if not key.endswith("skew_bias")
    ]
    assert plain.state_dict().keys() == skewed.state_dict().keys()
    assert all(torch.equal(value, skewed.state_dict()[key]) for key, value in plain.state_dict().items())
    graphs = [make_fx(model.layers[0].feed_forward.router)(torch.randn(5, 64)).graph for model in (plain, skewed)]
    added = [sum(node.target is torch.ops.aten.add.Tensor for node in graph.nodes) for graph in graphs]
    assert added[1] == added[0] + 1
    assert len(graphs[1].nodes) == len(graphs[0].nodes) + 2  # the constant, too


def test_a_skewed_model_is_rewired() -> None:
    model = build("deepseek_v3", dtype=torch.float64, router_skew=1.0, **SMALL)
    compiled = torch.compile(model, backend="farskip", fullgraph=True, options={"inner": "eager"})
    assert torch.equal(compiled(ids(2)), FarSkipForm(model)(ids(2)))
    assert [report.outcome for report in farskip_compile.reports().compiles] == [Outcome.REWIRED]


def test_nonsense_is_refused() -> None:
    for skew in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="router_skew"):
            build("mixtral", router_skew=skew)
    with pytest.raises(ConfigError, match="no router"):
        load_per_expert(build("mixtral", layers=("dense",)), ids())


def on_two_ranks(rank: int, world_size: int) -> tuple[list[int], list[int]]:
    """Rows that this rank's experts get in each layer, as exchanged, and as the load says."""
    world = dist.group.WORLD
    parallel = ParallelConfig(ep_group=world, ep_mode="dropless")
    whole = build("qwen3_moe", dtype=torch.float64, router_skew=1.5, **SMALL)
    model = build("qwen3_moe", dtype=torch.float64, router_skew=1.5, parallel=parallel, **SMALL)
    tokens = ids(4, seed=rank)
    assert relative_difference(FarSkipForm(model)(tokens), FarSkipForm(whole)(tokens)) < 1e-12
    got: list[int] = []
    for layer in model.layers:
        one = layer.feed_forward.experts
        compute = one.each
        one.each = lambda rows, compute=compute: got.append(sum(len(part) for part in rows)) or compute(rows)
    load = load_per_expert(model, tokens, group=world)
    assert torch.equal(load, sum(load_per_expert(whole, ids(4, seed=one)) for one in range(world_size)))
    return got, load.unflatten(-1, (world_size, -1)).sum(-1)[:, rank].tolist()


def test_loads_of_ranks_differ() -> None:
    (first, first_load), (second, second_load) = run_ranks(on_two_ranks, 2)
    assert first == first_load
    assert second == second_load
    assert all(one > 2 * other for one, other in zip(first, second, strict=True)), (first, second)
