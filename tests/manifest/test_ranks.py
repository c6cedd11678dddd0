# SPDX-License-Identifier: Apache-2.0
"""On two ranks: a manifest of the whole model holds for what each rank has of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import farskip_compile
from farskip_compile import describe, load_manifest, save_manifest
from farskip_compile.errors import ManifestError
from tests.compare import relative_difference
from tests.distributed.ranks import run_ranks

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from tests.distributed.hf_ranks import IDS, build, compiled, load, oracle, save

ROUNDING = 1e-6
LAYERS = 2


def other_model() -> Any:
    return build("deepseek_v3", LAYERS + 1)


def difference(model: Any, path: str, expected: torch.Tensor) -> float:
    """From the oracle; all parameters of the manifest's sub-blocks are seen in the graph."""
    output = compiled(model, manifest=path)(IDS)
    report = farskip_compile.reports().compiles[-1]
    assert len(report.sub_block_parameters) == len(load_manifest(path).fingerprint.used)
    return relative_difference(output, expected)


def on_rank(rank: int, world_size: int, path: str) -> dict[str, Any]:
    """For each way to be parallel: how far the compiled model is from the oracle; and what another model meets."""
    found: dict[str, Any] = {}
    with torch.no_grad():
        whole = load(path, rank, world_size)
        farskip_compile.unguard(whole)  # the oracle is made of its modules, and it is compared with its own wiring
        expected = oracle(whole)(IDS)
        assert relative_difference(expected, whole(IDS).logits) > ROUNDING
        model = load(path, rank, world_size, "tp")
        found["tp"] = difference(model, path, expected)
        mesh = init_device_mesh("cpu", (world_size,))
        model = load(path, rank, world_size).double()  # all of it: routers stay in float32 else
        fully_shard(model, mesh=mesh)
        found["fsdp"] = difference(model, path, expected)
        found["described again"] = describe(model, IDS).fingerprint == load_manifest(path).fingerprint
        torch._dynamo.config.optimize_ddp = False
        model = nn.parallel.DistributedDataParallel(load(path, rank, world_size))
        options = {"inner": "eager", "manifest": path}
        torch.compiler.reset()
        output = torch.compile(model, backend="farskip", options=options)(IDS).logits
        found["ddp"] = relative_difference(output, expected)
        assert farskip_compile.reports().compiles[-1].rewired_rows
        try:
            compiled(other_model(), manifest=path)(IDS)
        except ManifestError as error:
            found["other"] = error.reason
    return found


def test_whole_manifest_on_two_ranks(tmp_path: Path) -> None:
    path = save("deepseek_v3", LAYERS, tmp_path)
    save_manifest(describe(build("deepseek_v3", LAYERS), IDS), path)
    for found in run_ranks(on_rank, 2, path):
        assert all(found[way] <= ROUNDING for way in ("tp", "fsdp", "ddp")), found
        assert found["described again"]
        assert "attention.2 (attention, layer 2) after the 4 of the manifest" in found["other"]
