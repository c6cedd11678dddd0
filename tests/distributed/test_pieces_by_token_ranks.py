"""Exchanges in pieces by token on real ranks, compiled by Inductor: outputs and gradients are those of whole ones.

Models of ours, where each expert has products of its own; transformers' experts and torchtitan's, in grouped products.
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
from farskip_compile._compat import lookup_backend
from farskip_compile.costs import default_profile
from farskip_compile.inductor_passes.without_drops import cut_without_drops
from farskip_compile.models import FarSkipForm, ParallelConfig, build
from farskip_compile.passes.graph import ops
from farskip_compile.passes.pieces.notes import is_piece
from tests.compare import relative_difference, run_with_gradients
from tests.distributed.ranks import run_ranks
from tests.economy import scalar_kernels

SMALL: dict[str, Any] = {"vocab_size": 32, "hidden_size": 32, "experts": 8}
TOKENS = {"pieces": 2, "pieces_along": "tokens"}


def reported() -> list[tuple[str, int, int, int]]:
    """Of each schedule the phase, the pieces, exchanges in pieces and whole."""
    return [
        (one.phase, one.pieces, one.exchanges_cut, len(one.exchanges_whole)) for one in farskip_compile.last_schedules()
    ]


def ours_on_rank(
    rank: int, world_size: int, name: str, layers: tuple[str, ...], connectivity: str, cut: dict[str, Any]
) -> dict[str, Any]:
    torch.compiler.reset()
    farskip_compile.clear_schedules()
    parallel = ParallelConfig(ep_group=dist.group.WORLD, ep_mode="dropless")
    model = build(name, dtype=torch.float64, parallel=parallel, layers=layers, **SMALL)
    ids = torch.randint(0, 32, (2, 6), generator=torch.Generator().manual_seed(rank))
    expected = run_with_gradients(FarSkipForm(model, connectivity=connectivity), model, ids)
    options = {"connectivity": connectivity, **cut}
    with scalar_kernels():
        found = run_with_gradients(torch.compile(model, backend="farskip", fullgraph=True, options=options), model, ids)
    assert found[1].keys() == expected[1].keys()
    return {
        "reports": reported(),
        "along": {along for one in farskip_compile.last_schedules() for along in one.pieces_along},
        "output": relative_difference(found[0], expected[0]),
        "gradients": max(relative_difference(found[1][key], expected[1][key]) for key in expected[1]),
    }


@pytest.mark.parametrize(
    ("name", "layers", "connectivity", "cut", "along"),
    [
        ("mixtral", ("moe",), "none", TOKENS, "tokens"),
        ("deepseek_v3", ("moe", "moe"), "full", TOKENS, "tokens"),
        ("mixtral", ("moe",), "none", {"micro_batches": 2}, "batch"),
    ],
    ids=["one layer", "from one exchange into the next", "batch"],
)
def test_models_of_ours(name: str, layers: tuple[str, ...], connectivity: str, cut: dict[str, Any], along: str) -> None:
    for found in run_ranks(ours_on_rank, 2, name, layers, connectivity, cut, timeout=400):
        assert found["reports"] == [(phase, 2, len(layers), 0) for phase in ("forward", "backward")]
        assert found["along"] == {along}
        assert found["output"] < 1e-12, found
        assert found["gradients"] < 1e-11, found


# Of others


def transformers_on_rank(rank: int, world_size: int, path: str) -> dict[str, Any]:
    from tests.distributed.hf_ranks import IDS, compiled, difference, load, oracle

    whole = load(path, rank, world_size).train()
    model = load(path, rank, world_size, "farskip_all_to_all").train()
    found: dict[str, Any] = {}
    for connectivity in ("none", "full"):
        expected = run_with_gradients(oracle(whole, connectivity), whole, IDS)
        farskip_compile.clear_schedules()
        with scalar_kernels():
            run = compiled(model, inner="inductor", connectivity=connectivity, pieces=2)
            found[connectivity] = difference(run_with_gradients(run, model, IDS), expected), reported()
    return found


def test_experts_of_transformers(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from tests.distributed.hf_ranks import save

    for found in run_ranks(transformers_on_rank, 2, save("qwen2_moe", 1, tmp_path), timeout=500, fresh=True):
        for (output, gradients), reports in found.values():
            assert reports == [(phase, 2, 1, 0) for phase in ("forward", "backward")]
            assert output < 1e-5, found  # norms and routers are float32
            assert gradients < 1e-5, found


def torchtitan_on_rank(rank: int, world_size: int) -> dict[str, Any]:
    """In eager mode behind AOTAutograd: Inductor has no backward of flex attention on a CPU."""
    from tests.distributed.test_torchtitan_ranks import SOME, parallel, run
    from tests.models import titan

    found: dict[str, Any] = {}
    with titan.on_cpu():
        sharding = {"enable_ep": True, "enable_sp": False}
        model, (_, *others) = titan.build_deepseek_v3(SOME, torch.float64, sharding)
        args = (titan.token_ids(rank), *others)
        model.train()
        with parallel(model, world_size, "partial_dtensor"):
            for connectivity in ("none", "full"):
                expected = run(model if connectivity == "none" else titan.EagerForm(model), model, args)
                counted = [buffer.clone() for name, buffer in model.named_buffers() if "tokens_per_expert" in name]
                pieces: list[int] = []
                torch.compiler.reset()
                compiled = torch.compile(model, backend=partial(cut_and_run, connectivity, pieces), fullgraph=True)
                output, gradients = run(compiled, model, args)
                counts = [buffer for name, buffer in model.named_buffers() if "tokens_per_expert" in name]
                found[connectivity] = {
                    "pieces": pieces,
                    "output": relative_difference(output, expected[0]),
                    "gradients": {key: relative_difference(gradients[key], expected[1][key]) for key in gradients},
                    "counted": [torch.equal(now, 2 * before) for now, before in zip(counts, counted, strict=True)],
                }
                for buffer in counts:
                    buffer.zero_()
    return found


def cut_and_run(connectivity: str, pieces: list[int], module: fx.GraphModule, inputs: Any) -> Any:
    """A backend: rewire, cut in two, run eagerly."""
    farskip_compile.backend(connectivity=connectivity).rewire(module)
    cut_without_drops(module, 2, "auto", (), default_profile("cpu"), strict=True)
    pieces.append(sum(map(is_piece, ops.calls(module.graph, ops.is_all_to_all))))
    module.recompile()
    return lookup_backend("aot_eager")(module, inputs)


def test_experts_of_torchtitan() -> None:
    """A grouped product in bfloat16. The counts of tokens, a buffer, are those of the whole."""
    pytest.importorskip("torchtitan")
    for found in run_ranks(torchtitan_on_rank, 2, timeout=500):
        for result in found.values():
            assert result["pieces"] == [8]  # of two layers, there and back
            assert result["output"] == 0.0, found
            far = {name: by for name, by in result["gradients"].items() if by > (2e-2 if "experts" in name else 1e-12)}
            assert not far, far
            assert result["counted"]
            assert all(result["counted"]), found
