"""torchtitan's own all-to-all dispatcher on two gloo ranks: captured, rewired, and equal to eager forms on the ranks.

Each rank has tokens of its own and half of the experts. Gradients: see `tests/models/test_torchtitan.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import farskip_compile
from tests.compare import relative_difference, run_with_gradients
from tests.distributed.ranks import run_ranks

pytest.importorskip("torchtitan")

GRADIENTS = 1e-8
Result = dict[str, tuple[bool, float]]
ALL_TO_ALLS = ("all_to_all_single",) * 3  # of token counts, of tokens, of what the experts made of them

LEFT_OUT = {
    "attention.0": (),
    "mlp.0": ("a0",),
    "attention.1": (),
    "moe.1": ("a1",),
    "attention.2": ("r1",),
    "moe.2": ("a2",),
}


def shard(model: nn.Module) -> None:
    """Leave this rank its share of the experts, and give the dispatchers the mesh.

    That is what the library's `parallelize` does, which keeps the shares as DTensors.
    """
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("ep",))
    for layer in model.layers.values():
        if layer.moe_enabled:
            routed = layer.moe.routed_experts
            for name, weight in list(routed.inner_experts.named_parameters()):
                share = weight.chunk(mesh.size())[mesh.get_local_rank()]
                setattr(routed.inner_experts, name, nn.Parameter(share.detach().clone()))
            routed.token_dispatcher.wire_meshes(ep_mesh=mesh)


def compare_on_rank(rank: int, world_size: int) -> tuple[Result, dict[str, Any]]:
    """What is compared: is the output the same, the largest difference of gradients; and what the last report says."""
    from torchtitan.distributed.utils import set_spmd_backend

    from tests.models import titan

    set_spmd_backend("partial_dtensor")  # in eager mode too, the functional all-to-all that is in the graph
    results: Result = {}
    with titan.on_cpu():
        model, (_, *others) = titan.build_deepseek_v3(layers=3, dtype=torch.float64)
        args = (titan.token_ids(rank), *others)
        whole = model(*args).detach()
        model.train()
        shard(model)

        def run(function: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            return run_with_gradients(function, model, *args)

        def compiled(backend: str, **options: str) -> Any:
            torch.compiler.reset()
            return torch.compile(model, backend=backend, fullgraph=True, options=options or None)

        def compare(name: str, one: tuple[Any, Any], other: tuple[Any, Any]) -> None:
            assert one[1].keys() == other[1].keys()
            worst = max(relative_difference(one[1][key], other[1][key]) for key in one[1])
            results[name] = (torch.equal(one[0], other[0]), worst)

        as_written = run(compiled("farskip", inner="eager", connectivity="none"))
        results["as written, and one process"] = (torch.equal(as_written[0], whole), 0.0)
        compare("as written, and eager", as_written, run(model))
        compare("as written, and plain torch.compile", as_written, run(compiled("eager")))
        full = run(compiled("farskip", inner="eager"))
        compare("full, and its form by hand", full, run(titan.EagerForm(model)))
        assert relative_difference(full[0], as_written[0]) > 1e-3
    reports = farskip_compile.last_reports()
    assert len(reports) == 2  # one graph each
    found = {
        "wiring": (reports[-1].wiring_before, reports[-1].wiring_after),
        "left out": {row.name: row.left_out for row in reports[-1].rows},
        "collectives": {row.name: row.collectives for row in reports[-1].rows},
    }
    return results, found


def test_expert_parallel_training_step() -> None:
    for results, found in run_ranks(compare_on_rank, 2, timeout=300):
        assert len(results) == 4
        bad = {name: result for name, result in results.items() if not result[0] or result[1] > GRADIENTS}
        assert not bad, bad
        assert results["as written, and eager"][1] == 0.0
        assert found["wiring"] == ("standard", "full")
        assert found["left out"] == LEFT_OUT
        assert found["collectives"] == {name: ALL_TO_ALLS if name.startswith("moe") else () for name in LEFT_OUT}
