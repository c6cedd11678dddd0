# SPDX-License-Identifier: Apache-2.0
"""The form overlapped by hand: the function of `FarSkipForm`, and the order of its launches, work and waits."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from hand_forms import async_collectives, overlapped_all_to_all
from hand_forms.overlapped_form import OverlappedForm

from farskip_compile.errors import ConfigError, ParallelismError
from farskip_compile.models import MODELS, Decoder, FarSkipForm, ParallelConfig, build
from tests.benchmarks.recorded_order import recorded
from tests.compare import assert_gradients_close, relative_difference, run_with_gradients
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.xdist_group("overlapped form")  # one worker: the ranks record all orders at once

SMALL: dict[str, Any] = {"vocab_size": 32, "hidden_size": 32, "layers": ("dense", "moe", "moe")}
VARIANTS = {
    "two shared experts": ("deepseek_v3", {"shared_experts": 2}),
    "layer norm, scaled residuals": ("qwen3_moe", {"norm": "layer", "residual_scale": 0.5, "shared_experts": 1}),
    "parallel block": ("mixtral", {"parallel_block": True, "shared_experts": 1}),
    "dense at the end": ("llama4", {"layers": ("moe", "dense", "moe", "dense")}),
}


def ids(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 32, (2, 7), generator=torch.Generator().manual_seed(seed))


def check_equal(model: Decoder, tokens: torch.Tensor, **options: Any) -> None:
    """Outputs bit for bit, gradients of all parameters to rounding; with real collectives, and with late ones."""
    expected, expected_gradients = run_with_gradients(FarSkipForm(model, **options), model, tokens)
    form = OverlappedForm(model, **options)
    results = [run_with_gradients(form, model, tokens)]
    with recorded(model, []) as events:
        results.append(run_with_gradients(form, model, tokens))
    parallel = model.parallel.tp_group is not None or model.parallel.ep_group is not None
    assert parallel == any(event.startswith("launch") for event in events)
    for output, gradients in results:
        assert torch.equal(output, expected)
        assert_gradients_close(gradients, expected_gradients, 1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_process_computes_the_farskip_form(variant: str) -> None:
    name, overrides = VARIANTS[variant]
    check_equal(build(name, dtype=torch.float64, **(SMALL | overrides)), ids())


def test_nonsense_is_refused() -> None:
    with pytest.raises(ConfigError, match="tensor parallelism"):
        OverlappedForm(build("mixtral", **SMALL), merge_reductions=True)


# On two ranks


def computes_the_farskip_form(rank: int, parallel: ParallelConfig, **options: Any) -> None:
    tokens = ids(0 if parallel.tp_group else rank)
    cases = [(name, {}) for name in MODELS] + [VARIANTS["two shared experts"], VARIANTS["dense at the end"]]
    for name, overrides in cases:
        model = build(name, dtype=torch.float64, parallel=parallel, **(SMALL | overrides))
        check_equal(model, tokens, **options)


def decodes(rank: int, parallel: ParallelConfig, **options: Any) -> None:
    tokens = ids(0 if parallel.tp_group else rank)
    model = build("deepseek_v3", dtype=torch.float64, parallel=parallel, **SMALL)
    logits = []
    for form in (FarSkipForm(model, **options), OverlappedForm(model, **options)):
        cache = model.new_cache(2, 9)
        late = nullcontext() if isinstance(form, FarSkipForm) else recorded(model, [])
        with torch.no_grad(), late:
            logits.append([form(part, cache=cache) for part in (tokens[:, :5], tokens[:, 5:6], tokens[:, 6:7])])
    assert all(torch.equal(one, other) for one, other in zip(*logits, strict=True))


def two_micro_batches(rank: int, parallel: ParallelConfig) -> None:
    """One backward through two forwards: each launch has handles of its own."""
    model = build("deepseek_v3", dtype=torch.float64, parallel=parallel, **SMALL)
    tokens = (ids(rank), ids(rank + 2))

    def run(form: FarSkipForm | OverlappedForm) -> dict[str, torch.Tensor]:
        return run_with_gradients(lambda one, other: form(one) * form(other), model, *tokens)[1]

    expected = run(FarSkipForm(model))
    with recorded(model, []):
        assert_gradients_close(run(OverlappedForm(model)), expected, 1e-12)


def follows_skewed_routing(rank: int, parallel: ParallelConfig) -> None:
    whole = build("qwen3_moe", dtype=torch.float64, router_skew=1.5, **SMALL)
    model = build("qwen3_moe", dtype=torch.float64, router_skew=1.5, parallel=parallel, **SMALL)
    assert relative_difference(OverlappedForm(model)(ids(rank)), OverlappedForm(whole)(ids(rank))) < 1e-12


def order(
    rank: int, parallel: ParallelConfig, forward_names: str, backward_names: str, **options: Any
) -> tuple[list[str], list[str]]:
    """Events of forward and of backward, in a model of one dense layer and two with experts."""
    model = build("deepseek_v3", dtype=torch.float64, parallel=parallel, **SMALL)
    with recorded(model, forward_names.split()) as forward:
        logits = OverlappedForm(model, **options)(ids(rank if parallel.ep_group else 0))
    with recorded(model, backward_names.split()) as backward:
        logits.square().sum().backward()
    return forward, backward


def refusals(rank: int, world_size: int) -> None:
    world = dist.group.WORLD
    alone = [dist.new_group([one]) for one in range(world_size)][rank]
    for parallel in (
        ParallelConfig(tp_group=world, sequence_parallel=True),
        ParallelConfig(ep_group=world, ep_mode="allgather"),
        ParallelConfig(ep_group=world, tp_group=alone),
    ):
        with pytest.raises(ParallelismError, match="overlapped form"):
            OverlappedForm(build("mixtral", parallel=parallel, **SMALL))


def on_two_ranks(rank: int, world_size: int) -> dict[str, tuple[list[str], list[str]]]:
    world = dist.group.WORLD
    padded, dropless = ParallelConfig(ep_group=world), ParallelConfig(ep_group=world, ep_mode="dropless")
    tight, tensor = ParallelConfig(ep_group=world, capacity_factor=0.75), ParallelConfig(tp_group=world)
    for parallel in (padded, dropless, tight, tensor):
        computes_the_farskip_form(rank, parallel)
        decodes(rank, parallel)
    computes_the_farskip_form(rank, tensor, merge_reductions=True)
    decodes(rank, tensor, merge_reductions=True)
    two_micro_batches(rank, dropless)
    two_micro_batches(0, tensor)
    follows_skewed_routing(rank, dropless)
    refusals(rank, world_size)
    there_and_back = ("D1 C1 D2 C2", "C2 D2 C1 D1")
    found = {
        "padded": order(rank, padded, *there_and_back),
        "dropless": order(rank, dropless, *there_and_back),
        "tensor": order(rank, tensor, "a0 m0 a1 s1 r1 a2 m2", "m2 a2 r1 s1 a1 m0 a0"),
        "merged": order(rank, tensor, "a0 m0 as1 r1 a2 m2", "m2 a2 r1 as1 m0 a0", merge_reductions=True),
    }
    nothing = mock.Mock()
    with (
        mock.patch.object(async_collectives, "backward_at", nothing),
        mock.patch.object(overlapped_all_to_all, "backward_at", nothing),
    ):
        found["own numbers"] = order(rank, padded, *there_and_back)
    return found


@pytest.fixture(scope="module")
def orders() -> list[dict[str, tuple[list[str], list[str]]]]:
    return run_ranks(on_two_ranks, 2)


def events(text: str) -> list[str]:
    return [event.strip() for event in text.replace("\n", " ").split(",")]


@pytest.mark.parametrize("exchange", ["padded", "dropless"])
def test_all_to_all_forward(orders: Any, exchange: str) -> None:
    """Dispatch under the attention proper, combine under shared experts and the next layer's projections."""
    expected = events(
        """project 0, attention, mix 0, mlp 0, router 1, counts,
        launch D1, project 1, attention, mix 1, wait D1, routed 1,
        launch C1, shared 1, project 2, wait C1, router 2, counts,
        launch D2, attention, mix 2, wait D2, routed 2,
        launch C2, shared 2, wait C2, head"""
    )
    for found in orders:
        assert found[exchange][0] == [event for event in expected if exchange == "dropless" or event != "counts"]


@pytest.mark.parametrize("exchange", ["padded", "dropless"])
def test_all_to_all_backward(orders: Any, exchange: str) -> None:
    """Combine under shared experts and the attention proper, dispatch under projections and router."""
    for found in orders:
        assert found[exchange][1] == events(
            """head,
            launch C2, shared 2, mix 2, attention, wait C2, routed 2,
            launch D2, project 2, router 2, wait D2,
            launch C1, shared 1, mix 1, attention, wait C1, routed 1,
            launch D1, project 1, router 1, wait D1,
            mlp 0, mix 0, attention, project 0"""
        )


def test_without_sequence_numbers_backward_waits_at_once(orders: Any) -> None:
    for found in orders:
        forward, backward = found["own numbers"]
        assert forward == found["padded"][0]
        for name in ("C2", "D2", "C1", "D1"):
            launched = backward.index(f"launch {name}")
            assert backward[launched + 1] == f"wait {name}", backward


def test_all_reduce(orders: Any) -> None:
    """That of r under the next attention, in forward and in backward; those of a and s under the routed experts."""
    for found in orders:
        forward, backward = found["tensor"]
        assert forward == events(
            """project 0, attention, mix 0, launch a0, mlp 0, wait a0, launch m0, wait m0,
            project 1, attention, mix 1, launch a1, shared 1, launch s1, router 1, routed 1, wait a1, wait s1,
            launch r1, project 2, attention, mix 2, launch a2, wait r1,
            router 2, routed 2, shared 2, wait a2, launch m2, wait m2, head"""
        )
        assert backward == events(
            """head, launch m2, launch a2, wait m2, shared 2, routed 2, router 2,
            launch r1, wait a2, mix 2, attention, project 2,
            launch s1, launch a1, wait r1, routed 1, router 1, wait s1, shared 1, wait a1, mix 1, attention, project 1,
            launch m0, launch a0, wait m0, mlp 0, wait a0, mix 0, attention, project 0"""
        )


def test_merged_all_reduce(orders: Any) -> None:
    """One for a + s, under the routed experts in both directions."""
    for found in orders:
        forward, backward = found["merged"]
        assert forward == events(
            """project 0, attention, mix 0, launch a0, mlp 0, wait a0, launch m0, wait m0,
            project 1, attention, mix 1, shared 1, launch as1, router 1, routed 1, wait as1,
            launch r1, project 2, attention, mix 2, launch a2, wait r1,
            router 2, routed 2, shared 2, wait a2, launch m2, wait m2, head"""
        )
        assert backward == events(
            """head, launch m2, launch a2, wait m2, shared 2, routed 2, router 2,
            launch r1, wait a2, mix 2, attention, project 2,
            launch as1, wait r1, routed 1, router 1, wait as1, shared 1, mix 1, attention, project 1,
            launch m0, launch a0, wait m0, mlp 0, wait a0, mix 0, attention, project 0"""
        )
