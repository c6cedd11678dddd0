# SPDX-License-Identifier: Apache-2.0
"""Layers compiled one by one on real gloo ranks: what is in flight between them, and how people shard and recompute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import fx
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import farskip_compile
from farskip_compile.models import FarSkipForm, build
from farskip_compile.passes.pieces.tokens import onward
from tests.compare import relative_difference, run_with_gradients
from tests.distributed.ranks import run_ranks
from tests.distributed.test_rewire_ranks import parallel_config, tokens_of

SMALL: dict[str, Any] = {"vocab_size": 32, "layers": ("moe", "moe", "moe"), "hidden_size": 32}
WRAPPED = "._checkpoint_wrapped_module"


def model_on(
    layout: str, name: str, world_size: int, dtype: torch.dtype = torch.float64, **sizes: Any
) -> tuple[Any, torch.Tensor]:
    torch.compiler.reset()
    farskip_compile.reports().clear()
    parallel = parallel_config(layout, world_size)
    model = build(name, dtype=dtype, parallel=parallel, **{**SMALL, **sizes})
    ids = torch.randint(0, 32, (2, 6), generator=torch.Generator().manual_seed(tokens_of(parallel)))
    return model, ids


def nothing_is_left_in_flight() -> bool:
    from torch._C._distributed_c10d import _get_work_registry_size

    return bool(_get_work_registry_size() == 0)


# Each form of parallelism


def compare_on_rank(rank: int, world_size: int, layout: str, name: str, inner: str) -> dict[str, Any]:
    dtype = torch.float32 if inner == "inductor" else torch.float64
    model, ids = model_on(layout, name, world_size, dtype)
    expected, wanted = run_with_gradients(FarSkipForm(model), model, ids)
    regional = farskip_compile.regional(model, "full", inner=inner)
    output, gradients = run_with_gradients(model, model, ids)
    reports = farskip_compile.reports().compiles
    return {
        "equal": torch.equal(output, expected) and all(torch.equal(gradients[name], wanted[name]) for name in wanted),
        "close": max(relative_difference(gradients[name], wanted[name]) for name in wanted),
        "outputs": relative_difference(output, expected),
        "stays": [dict(report.departure.stays) for report in reports if report.departure is not None],
        "rows": len(regional.table.rows),
        "graphs": len(reports),
        "landed": nothing_is_left_in_flight(),
        "orders": [(one.phase, one.orders, len(one.flights)) for one in farskip_compile.reports().schedules],
    }


@pytest.mark.parametrize("layout", ["padded", "dropless", "tp", "tp+sp"])
def test_bit_equal_to_the_form_by_hand(layout: str) -> None:
    for found in run_ranks(compare_on_rank, 2, layout, "deepseek_v3", "eager", timeout=300):
        assert found["equal"]
        assert found["stays"] == [{}, {}, {}]  # each combine, or reduction of experts, crosses in flight
        assert found["rows"] == 6
        assert found["graphs"] == 3  # sizes that data decides make no further one
        assert found["landed"]


def test_under_inductor() -> None:
    for found in run_ranks(compare_on_rank, 2, "padded", "mixtral", "inductor", timeout=400):
        assert found["outputs"] < 1e-5
        assert found["close"] < 1e-5
        assert found["landed"]
        forward = [one for one in found["orders"] if one[0] == "forward"]
        # the last layer leaves nothing; each of the others launches a combine that it does not wait for
        assert [flights for _, _, flights in forward] == [2, 3, 3]
        assert all(len(order) == 2 for _, orders, _ in forward for order in orders.values())


def in_pieces_on_rank(rank: int, world_size: int, layout: str, along: Any, pieces: Any) -> dict[str, Any]:
    model, ids = model_on(layout, "mixtral", world_size, torch.float32, layers=("moe", "moe"))
    expected, wanted = run_with_gradients(FarSkipForm(model), model, ids)
    # in a model this small one more buffer exceeds the usual limit on memory
    farskip_compile.regional(model, "full", pieces=pieces, pieces_along=along, memory_increase=10.0)
    handed: list[int] = []

    def hand_on(graph: fx.Graph, hand_on: Callable[[fx.Graph], int] = onward.hand_on) -> int:
        handed.append(hand_on(graph))
        return handed[-1]

    with mock.patch.object(onward, "hand_on", hand_on):
        output, gradients = run_with_gradients(model, model, ids)
    run_with_gradients(model, model, ids.flip(1) // 2)  # experts get other numbers of rows
    schedules = farskip_compile.reports().schedules
    forward = [one for one in schedules if one.phase == "forward"]
    first, second = sorted(forward, key=lambda one: -one.left_in_flight)[:2]
    came = [one.seconds for one in second.flights[: first.left_in_flight]]
    return {
        "handed on": [one > 0 for one in handed],
        "late": came[:-1] == [0.0] * (len(came) - 1) and came[-1] <= 1.001 * first.after.late_seconds,
        "outputs": relative_difference(output, expected),
        "close": max(relative_difference(gradients[name], wanted[name]) for name in wanted),
        "left": sorted(one.left_in_flight for one in forward),
        "landed": [one.landed for one in forward],
        "pieces": {one.pieces for one in schedules},
        "graphs": len(farskip_compile.reports().compiles),
        "nothing is left": nothing_is_left_in_flight(),
    }


@pytest.mark.parametrize(
    ("layout", "along", "pieces"),
    [("padded", "auto", 2), ("padded", "auto", 4), ("dropless", "experts", 2), ("dropless", "tokens", 2)],
)
def test_each_piece_crosses_in_flight(layout: str, along: str, pieces: int) -> None:
    for found in run_ranks(in_pieces_on_rank, 2, layout, along, pieces, timeout=500):
        assert found["outputs"] < 1e-5
        assert found["close"] < 1e-5
        assert found["left"] == [0, pieces]  # the last layer waits for its own
        assert found["landed"] == [(), ()]
        assert found["handed on"] == [along == "tokens"]  # by the second layer, through its norm and router
        assert found["late"]  # the second layer is told when what the first one left will have landed
        assert found["pieces"] == {pieces}
        assert found["graphs"] == 2  # other sizes make no further one
        assert found["nothing is left"]


def test_auto_leaves_whole_what_is_not_worth_cutting() -> None:
    for found in run_ranks(in_pieces_on_rank, 2, "padded", "auto", "auto", timeout=400):
        assert found["close"] < 1e-5
        assert found["left"] == [0, 1]
        assert found["landed"] == [(), ()]


# How layers are sharded and recomputed


def way_on_rank(rank: int, world_size: int, way: str, inner: str) -> dict[str, Any]:
    """The form by hand, its gradients reduced by hand, and the model sharded layer by layer."""
    words = way.split()
    model, ids = model_on("padded", "mixtral", world_size)
    expected, wanted = run_with_gradients(FarSkipForm(model), model, ids)
    experts = {parameter for name, parameter in model.named_parameters() if ".experts" in name}
    mesh = init_device_mesh("cpu", (world_size,))
    loop = "loop" in words
    outside = "outside" in words  # checkpoints around what is compiled
    if loop:
        farskip_compile.regional(model, compile=False)
    if outside:
        farskip_compile.regional(model, "full", inner=inner)
    if "checkpoint" in words:
        for number, layer in enumerate(model.layers):
            model.layers[number] = checkpoint_wrapper(layer)
    if not loop and not outside:
        farskip_compile.regional(model, "full", inner=inner)
    steps = [step for step in words if step in ("compile", "shard")] or ["shard"]
    for step in steps:
        for layer in model.layers:
            if step == "shard":
                fully_shard(layer, mesh=mesh, ignored_params=experts)
            elif loop:
                layer.compile(backend="farskip", fullgraph=True, options={"inner": inner})
    fully_shard(model, mesh=mesh, ignored_params=experts)
    output, gradients = run_with_gradients(model, model, ids)
    differing = []
    for name, gradient in gradients.items():
        own = wanted[name.replace(WRAPPED, "")]
        if ".experts" not in name:
            dist.all_reduce(own)
            own /= world_size
            gradient = gradient.full_tensor()
        if not torch.equal(gradient, own):
            differing.append(name)
    return {"equal": torch.equal(output, expected), "differing": differing, "landed": nothing_is_left_in_flight()}


@pytest.mark.parametrize(
    "way",
    [
        "shard",
        "checkpoint shard",
        "outside checkpoint shard",
        "loop compile shard",
        "loop shard compile",
        "loop checkpoint compile shard",
    ],
)
def test_sharded_layer_by_layer(way: str) -> None:
    for found in run_ranks(way_on_rank, 2, way, "eager", timeout=300):
        assert found == {"equal": True, "differing": [], "landed": True}


def ddp_on_rank(rank: int, world_size: int) -> dict[str, Any]:
    from torch.nn.parallel import DistributedDataParallel

    torch.compiler.reset()
    model = build("mixtral", dtype=torch.float64, **SMALL)
    ids = torch.randint(0, 32, (2, 6), generator=torch.Generator().manual_seed(rank))
    expected, wanted = run_with_gradients(FarSkipForm(model), model, ids)
    farskip_compile.regional(model, "full", inner="eager")
    assert torch._dynamo.config.optimize_ddp
    parallel = DistributedDataParallel(model, bucket_cap_mb=1e-3)  # which would cut each layer in several graphs
    output, gradients = run_with_gradients(parallel, model, ids)
    for gradient in wanted.values():
        dist.all_reduce(gradient)
    same = all(torch.allclose(gradients[name], wanted[name] / world_size, rtol=1e-12, atol=0) for name in wanted)
    return {"equal": torch.equal(output, expected), "gradients": same, "split": torch._dynamo.config.optimize_ddp}


def test_ddp_with_graph_splitting_left_on() -> None:
    for found in run_ranks(ddp_on_rank, 2, timeout=300):
        assert found == {"equal": True, "gradients": True, "split": True}


def compiled_differently(rank: int, world_size: int, what: str) -> str:
    model, ids = model_on("padded", "mixtral", world_size)
    if what == "layers":  # the same collectives, another function
        farskip_compile.regional(model, "full", layers=(0, 2) if rank else (0, 1), compile=False)
        for layer in model.layers:
            layer.compile(backend="farskip", fullgraph=True, options={"inner": "eager"})
    elif rank:
        farskip_compile.regional(model, "full", inner="eager")
    else:
        model.compile(backend="farskip", fullgraph=True, options={"inner": "eager"})
    try:
        with torch.no_grad():
            model(ids)
    except farskip_compile.errors.OrderMismatchError as error:
        return type(error).__name__
    return "nothing was noticed"


@pytest.mark.parametrize("what", ["layers", "whole"])
def test_ranks_that_compile_other_layers_raise(what: str) -> None:
    found = run_ranks(compiled_differently, 2, what, timeout=120)
    assert set(found) <= {"OptionsMismatchError", "OrderMismatchError"}
