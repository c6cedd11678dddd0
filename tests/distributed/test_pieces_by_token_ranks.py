# SPDX-License-Identifier: Apache-2.0
"""Exchanges in pieces by token on real ranks: outputs and gradients are those of whole ones.

Models whose experts have products of their own are compiled by Inductor. The others run eagerly under AOTAutograd,
since the cut is made before both and building kernels takes longest: experts of transformers and torchtitan, in grouped
products; by all-gather, models of ours and experts as engines write them; in slices of matrices, the batch in parts.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import fx

import farskip_compile
from farskip_compile._compat import collectives, lookup_backend
from farskip_compile.compiler.config import FarSkipConfig, resolve
from farskip_compile.compiler.inductor_passes.micro_batches import cut_in_micro_batches
from farskip_compile.compiler.inductor_passes.without_drops import cut_without_drops
from farskip_compile.costs import default_profile
from farskip_compile.models import FarSkipForm, ParallelConfig, build
from farskip_compile.passes.graph import comms, ops
from farskip_compile.passes.pieces.notes import is_piece
from tests.compare import relative_difference, run_with_gradients
from tests.distributed.ranks import run_ranks
from tests.economy import scalar_kernels

SMALL: dict[str, Any] = {"vocab_size": 32, "hidden_size": 32, "experts": 8}
FEW: dict[str, Any] = {**SMALL, "experts": 4, "top_k": 2, "router_groups": 1, "router_top_groups": 1}
"""Where each expert has kernels of its own."""
TOKENS = {"pieces": 2, "pieces_along": "tokens"}


def reported() -> list[tuple[str, int, int, int]]:
    """Of each schedule the phase, the pieces, exchanges in pieces and whole."""
    return [
        (one.phase, one.pieces, one.exchanges_cut, len(one.exchanges_whole))
        for one in farskip_compile.reports().schedules
    ]


def ours_on_rank(
    rank: int,
    world_size: int,
    name: str,
    layers: tuple[str, ...],
    connectivity: str,
    cut: dict[str, Any],
) -> dict[str, Any]:
    torch.compiler.reset()
    farskip_compile.reports().clear()
    parallel = ParallelConfig(ep_group=dist.group.WORLD, ep_mode="dropless")
    model = build(name, dtype=torch.float64, parallel=parallel, layers=layers, **FEW)
    ids = torch.randint(0, 32, (2, 6), generator=torch.Generator().manual_seed(rank))
    expected = run_with_gradients(FarSkipForm(model, connectivity=connectivity), model, ids)
    options = {"connectivity": connectivity, **cut}
    with scalar_kernels():
        found = run_with_gradients(torch.compile(model, backend="farskip", fullgraph=True, options=options), model, ids)
    assert found[1].keys() == expected[1].keys()
    return {
        "reports": reported(),
        "along": {along for one in farskip_compile.reports().schedules for along in one.pieces_along},
        "output": relative_difference(found[0], expected[0]),
        "gradients": max(relative_difference(found[1][key], expected[1][key]) for key in expected[1]),
    }


@pytest.mark.parametrize(
    ("name", "layers", "connectivity", "cut", "along"),
    [
        ("mixtral", ("moe", "moe"), "full", TOKENS, "tokens"),
        ("deepseek_v3", ("moe", "moe"), "full", TOKENS, "tokens"),
        ("mixtral", ("moe",), "none", {"micro_batches": 2}, "batch"),
    ],
    ids=["from one exchange into the next", "beside shared experts", "batch"],
)
def test_models_of_ours(name: str, layers: tuple[str, ...], connectivity: str, cut: dict[str, Any], along: str) -> None:
    for found in run_ranks(ours_on_rank, 2, name, layers, connectivity, cut, timeout=400):
        assert found["reports"] == [(phase, 2, len(layers), 0) for phase in ("forward", "backward")]
        assert found["along"] == {along}
        assert found["output"] < 1e-12, found
        assert found["gradients"] < 1e-11, found


# In slices


def slices_on_rank(rank: int, world_size: int, name: str, connectivity: str) -> dict[str, Any]:
    """The batch in two parts, matrices cut among the ranks; run eagerly after AOTAutograd."""
    parallel = ParallelConfig(tp_group=dist.group.WORLD)
    model = build(name, dtype=torch.float64, parallel=parallel, layers=("dense", "moe"), **SMALL)
    ids = torch.randint(0, 32, (2, 7), generator=torch.Generator().manual_seed(0))
    form = model if connectivity == "none" else FarSkipForm(model, connectivity=connectivity)
    return compared(connectivity, model, form, ids, batch=True)


@pytest.mark.parametrize(("name", "connectivity"), [("mixtral", "none"), ("llama4", "full"), ("deepseek_v3", "ladder")])
def test_matrices_in_slices(name: str, connectivity: str) -> None:
    for found in run_ranks(slices_on_rank, 2, name, connectivity, timeout=300):
        assert found["pieces"] == [2 * (2 + 2)], found  # of each layer the attention's and the feed-forward's
        assert found["output"] < 1e-13, found
        assert found["gradients"] < 1e-12, found


# By all-gather


def gathered_on_rank(rank: int, world_size: int, name: str, connectivity: str, batch: bool = False) -> dict[str, Any]:
    """Run eagerly after AOTAutograd, both whole and in two pieces."""
    parallel = ParallelConfig(ep_group=dist.group.WORLD, ep_mode="allgather")
    model = build(name, dtype=torch.float64, parallel=parallel, layers=("moe", "moe"), **SMALL)
    ids = torch.randint(0, 32, (2, 7), generator=torch.Generator().manual_seed(rank))
    form = model if connectivity == "none" else FarSkipForm(model, connectivity=connectivity)
    return compared(connectivity, model, form, ids, batch)


def compared(
    connectivity: str | None, model: torch.nn.Module, form: torch.nn.Module, given: torch.Tensor, batch: bool = False
) -> dict[str, Any]:
    """A model in pieces, or its batch in parts, with its form as it is written."""
    expected = run_with_gradients(form, model, given)
    pieces: list[int] = []
    torch.compiler.reset()
    compiled = torch.compile(model, backend=partial(cut_and_run, connectivity, pieces, batch=batch), fullgraph=True)
    output, gradients = run_with_gradients(compiled, model, given)
    assert gradients.keys() == expected[1].keys()
    return {
        "pieces": pieces,
        "equal": torch.equal(output, expected[0]),
        "output": relative_difference(output, expected[0]),
        "gradients": max(relative_difference(gradients[key], expected[1][key]) for key in gradients),
    }


@pytest.mark.parametrize(
    ("name", "connectivity", "batch"),
    [
        ("mixtral", "none", False),
        ("deepseek_v3", "full", False),
        ("mixtral", "none", True),
    ],
)
def test_tokens_that_are_gathered(name: str, connectivity: str, batch: bool) -> None:
    for found in run_ranks(gathered_on_rank, 2, name, connectivity, batch, timeout=300):
        assert found["pieces"] == [2 * 2 * 2]  # of two layers a gather and a scatter each
        assert found["output"] < 1e-13, found
        assert found["gradients"] < 1e-12, found


class EnginesExperts(torch.nn.Module):
    """The router's choice is gathered with the tokens; each rank sorts the rows of its experts, and adds up."""

    def __init__(self, width: int, experts: int, rank: int, ranks: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.held, self.first = experts // ranks, rank * experts // ranks
        self.router = torch.nn.Parameter(torch.randn(experts, width, dtype=torch.float64, generator=draw))
        weights = torch.randn(experts, width, width, dtype=torch.float64, generator=draw) / width
        self.experts = torch.nn.Parameter(weights[self.first :][: self.held].clone())

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        weights, chosen = torch.nn.functional.linear(hidden, self.router).softmax(-1).topk(2)
        tokens, chosen, weights = (
            collectives.all_gather(one, 0, dist.group.WORLD) for one in (hidden, chosen, weights)
        )
        local = chosen.flatten() - self.first
        local = local.where((local >= 0) & (local < self.held), self.held)
        expert, order = local.sort(stable=True)
        product = torch.zeros_like(tokens)
        for number in range(self.held):
            here = (expert == number).unsqueeze(-1)
            rows = (tokens[order // 2] @ self.experts[number]).tanh() * weights.flatten()[order].unsqueeze(-1)
            product = product.index_add(0, order // 2, rows.masked_fill(~here, 0))
        return hidden + collectives.reduce_scatter(product, "sum", 0, dist.group.WORLD)


def engines_on_rank(rank: int, world_size: int) -> dict[str, Any]:
    layers = [EnginesExperts(16, 8, rank, world_size) for _ in range(2)]
    model = torch.nn.Sequential(*layers)
    draw = torch.Generator().manual_seed(rank)
    return compared(None, model, model, torch.randn(10, 16, dtype=torch.float64, generator=draw))


def test_experts_as_engines_write_them() -> None:
    for found in run_ranks(engines_on_rank, 2, timeout=300):
        assert found["pieces"] == [2 * 2 * (3 + 1)]
        assert found["output"] < 1e-13, found
        assert found["gradients"] < 1e-12, found


# Of others


def transformers_on_rank(rank: int, world_size: int, path: str, connectivity: str) -> tuple[list[int], Any]:
    from tests.distributed.hf_ranks import IDS, difference, load, oracle

    whole = load(path, rank, world_size).train()
    model = load(path, rank, world_size, "farskip_all_to_all").train()
    expected = run_with_gradients(oracle(whole, connectivity), whole, IDS)
    pieces: list[int] = []
    torch.compiler.reset()
    compiled = torch.compile(model, backend=partial(cut_and_run, connectivity, pieces), fullgraph=True)
    return pieces, difference(run_with_gradients(lambda ids: compiled(ids).logits, model, IDS), expected)


@pytest.mark.parametrize("connectivity", ["none", "full"])
def test_experts_of_transformers(connectivity: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from tests.distributed.hf_ranks import save

    path = save("qwen2_moe", 1, tmp_path)
    for pieces, (output, gradients) in run_ranks(transformers_on_rank, 2, path, connectivity, timeout=500):
        assert pieces == [2 * 2]  # there and back
        assert output < 1e-5  # norms and routers are float32
        assert gradients < 1e-5


def torchtitan_on_rank(rank: int, world_size: int, connectivity: str) -> dict[str, Any]:
    """In eager mode behind AOTAutograd: Inductor has no backward of flex attention on a CPU."""
    from tests.distributed.test_torchtitan_ranks import SOME, parallel, run
    from tests.models import titan

    with titan.on_cpu():
        sharding = {"enable_ep": True, "enable_sp": False}
        model, (_, *others) = titan.build_deepseek_v3(SOME, torch.float64, sharding)
        args = (titan.token_ids(rank), *others)
        model.train()
        with parallel(model, world_size, "partial_dtensor"):
            expected = run(model if connectivity == "none" else titan.EagerForm(model), model, args)
            counted = [buffer.clone() for name, buffer in model.named_buffers() if "tokens_per_expert" in name]
            pieces: list[int] = []
            torch.compiler.reset()
            compiled = torch.compile(model, backend=partial(cut_and_run, connectivity, pieces), fullgraph=True)
            output, gradients = run(compiled, model, args)
            counts = [buffer for name, buffer in model.named_buffers() if "tokens_per_expert" in name]
    return {
        "pieces": pieces,
        "output": relative_difference(output, expected[0]),
        "gradients": {key: relative_difference(gradients[key], expected[1][key]) for key in gradients},
        "counted": [torch.equal(now, 2 * before) for now, before in zip(counts, counted, strict=True)],
    }


def cut_and_run(
    connectivity: str | None, pieces: list[int], module: fx.GraphModule, inputs: Any, *, batch: bool = False
) -> Any:
    """A backend that rewires the graph if it has a stream, cuts it in two, and runs it eagerly."""
    if connectivity is not None:
        farskip_compile.backend(connectivity=connectivity).rewire(module)
    if batch:
        cut_in_micro_batches(module, resolve(FarSkipConfig(micro_batches=2)))
    else:
        cut_without_drops(module, resolve(FarSkipConfig(pieces=2)), default_profile("cpu"))
    pieces.append(sum(map(is_piece, ops.calls(module.graph, comms.is_collective))))
    module.recompile()
    return lookup_backend("aot_eager")(module, inputs)


@pytest.mark.parametrize("connectivity", ["none", "full"])
def test_experts_of_torchtitan(connectivity: str) -> None:
    """A grouped product in bfloat16. The counts of tokens, a buffer, are those of the whole."""
    pytest.importorskip("torchtitan")
    for result in run_ranks(torchtitan_on_rank, 2, connectivity, timeout=500):
        assert result["pieces"] == [8]  # of two layers, there and back
        assert result["output"] == 0.0, result
        far = {name: by for name, by in result["gradients"].items() if by > (2e-2 if "experts" in name else 1e-12)}
        assert not far, far
        assert result["counted"]
        assert all(result["counted"]), result
