# SPDX-License-Identifier: Apache-2.0
"""Exchanges in pieces on real ranks, compiled by Inductor: outputs and gradients are those of whole exchanges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

import farskip_compile
from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.models import FarSkipForm, ParallelConfig, build
from tests.compare import relative_difference, run_with_gradients
from tests.distributed.ranks import run_ranks
from tests.economy import scalar_kernels

SMALL: dict[str, Any] = {"vocab_size": 32, "hidden_size": 32, "experts": 8}
FEW = {"experts": 4, "top_k": 2, "router_groups": 1, "router_top_groups": 1}
"""Without drops, where each has kernels of its own."""
PADDED, DROPLESS = {"ep_mode": "padded", "capacity_factor": 1.0}, {"ep_mode": "dropless"}
WISHES = (
    ("mixtral", ("moe",), PADDED, {"connectivity": "none", "pieces": 4}),
    ("deepseek_v3", ("moe", "moe"), PADDED, {"connectivity": "full", "pieces": 2}),
    ("mixtral", ("moe",), DROPLESS, {"connectivity": "none", "pieces": 2}),
    ("deepseek_v3", ("moe", "moe"), DROPLESS, {"connectivity": "full", "pieces": 2}),
)


def sizes(mode: dict[str, Any]) -> dict[str, Any]:
    """Of the model."""
    return {**SMALL, **FEW} if mode == DROPLESS else SMALL


def compare_on_rank(
    rank: int, world_size: int, name: str, layers: tuple[str, ...], mode: Any, options: Any
) -> dict[str, Any]:
    """Outputs and gradients in pieces against those of the eager form by hand, and what the reports say."""
    torch.compiler.reset()
    farskip_compile.reports().clear()
    parallel = ParallelConfig(ep_group=dist.group.WORLD, **mode)
    model = build(name, dtype=torch.float64, parallel=parallel, layers=layers, **sizes(mode))
    ids = torch.randint(0, 32, (2, 6), generator=torch.Generator().manual_seed(rank))
    expected = run_with_gradients(FarSkipForm(model, connectivity=options["connectivity"]), model, ids)
    with scalar_kernels():
        found = run_with_gradients(torch.compile(model, backend="farskip", fullgraph=True, options=options), model, ids)
    assert found[1].keys() == expected[1].keys()
    return {
        "reports": [(one.phase, one.pieces, one.exchanges_cut) for one in farskip_compile.reports().schedules],
        "output": relative_difference(found[0], expected[0]),
        "gradients": max(relative_difference(found[1][key], expected[1][key]) for key in expected[1]),
    }


@pytest.mark.parametrize(("name", "layers", "mode", "options"), WISHES)
def test_pieces_compute_what_whole_exchanges_do(
    name: str, layers: tuple[str, ...], mode: dict[str, Any], options: dict[str, Any]
) -> None:
    for found in run_ranks(compare_on_rank, 2, name, layers, mode, options, timeout=300):
        assert found["reports"] == [(phase, options["pieces"], len(layers)) for phase in ("forward", "backward")]
        assert found["output"] < 1e-12, found
        assert found["gradients"] < 1e-11, found


def layer_by_layer_on_rank(rank: int, world_size: int, mode: dict[str, Any]) -> dict[str, Any]:
    """Each layer compiled by itself, as training stacks do."""
    torch.compiler.reset()
    farskip_compile.reports().clear()
    parallel = ParallelConfig(ep_group=dist.group.WORLD, **mode)
    model = build("mixtral", dtype=torch.float64, parallel=parallel, layers=("moe", "moe"), **sizes(mode))
    ids = torch.randint(0, 32, (2, 6), generator=torch.Generator().manual_seed(rank))
    expected = run_with_gradients(model, model, ids)
    for layer in model.layers:
        layer.compile(backend="farskip", fullgraph=True, options={"connectivity": "none", "pieces": 2})
    with scalar_kernels():
        found = run_with_gradients(model, model, ids)
    return {
        "reports": {(one.phase, one.pieces, one.exchanges_cut) for one in farskip_compile.reports().schedules},
        "output": relative_difference(found[0], expected[0]),
        "gradients": max(relative_difference(found[1][key], expected[1][key]) for key in expected[1]),
    }


@pytest.mark.parametrize("mode", [PADDED, DROPLESS], ids=["padded", "dropless"])
def test_layers_that_are_compiled_by_themselves(mode: dict[str, Any]) -> None:
    for found in run_ranks(layer_by_layer_on_rank, 2, mode, timeout=300):
        assert found["reports"] == {("forward", 2, 1), ("backward", 2, 1)}
        assert found["output"] < 1e-12, found
        assert found["gradients"] < 1e-11, found


def refused_on_rank(rank: int, world_size: int) -> list[str]:
    """What is said of an exchange without drops where each rank has one expert: under `strict`, and without it."""
    torch.compiler.reset()
    parallel = ParallelConfig(ep_group=dist.group.WORLD, ep_mode="dropless")
    model = build("mixtral", parallel=parallel, layers=("moe",), **{**SMALL, "experts": 2})
    ids = torch.randint(0, 32, (2, 6), generator=torch.Generator().manual_seed(rank))
    found = []
    experts: dict[str, Any] = {"pieces": 2, "pieces_along": "experts"}
    for options in (experts, {**experts, "strict": False}):
        farskip_compile.reports().clear()
        torch.compiler.reset()
        compiled = torch.compile(model, backend="farskip", fullgraph=True, options={"connectivity": "none", **options})
        try:
            with torch.no_grad(), scalar_kernels():
                compiled(ids)
            found += [text for one in farskip_compile.reports().schedules for text in one.exchanges_whole]
        except UnsupportedPatternError as error:
            found.append(f"{error.reason} {error.where}")
    return found


def test_what_can_not_be_cut_is_an_error_or_said() -> None:
    for found in run_ranks(refused_on_rank, 2, timeout=300):
        error, *said = found
        assert (
            "whose sizes data decides can't be cut in 2 pieces: there are fewer experts on each rank than pieces: 1"
            in error
        )
        assert "comm.py" in error
        assert said
        assert all("there are fewer experts on each rank than pieces" in text for text in said)
