# SPDX-License-Identifier: Apache-2.0
"""Our all-to-all for experts of transformers against theirs: bit for bit, eager and compiled, also without tokens."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import farskip_compile
from farskip_compile import ConfigError
from farskip_compile.errors import PartialModelError
from farskip_compile.tools.prepare import register_expert_parallel
from tests.distributed.ranks import run_ranks

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from tests.distributed.hf_ranks import IDS, compiled, load, save

LOCAL, WIDTH, TOKENS = 2, 8, 5
KERNELS = (
    ("eager", torch.float64),
    ("batched_mm", torch.float64),
    ("grouped_mm", torch.float32),
    ("grouped_mm", torch.bfloat16),
)
"""`eager` is a loop over the experts that got tokens, which no graph can hold."""


def experts_of(kernel: str, dtype: torch.dtype, seed: int) -> Any:
    """The experts of one rank."""
    import transformers
    from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeExperts

    config = transformers.Qwen2MoeConfig(hidden_size=WIDTH, moe_intermediate_size=WIDTH, num_experts=LOCAL)
    config._experts_implementation = kernel
    experts = Qwen2MoeExperts(config).to(dtype)
    experts._is_expert_parallel = True  # as transformers' sharding sets it
    generator = torch.Generator().manual_seed(seed)
    for parameter in experts.parameters():
        nn.init.normal_(parameter, generator=generator)
    return experts


def output_and_gradients(call: Any, experts: nn.Module, *values: torch.Tensor) -> list[torch.Tensor | None]:
    rows, chosen, weights = values
    rows, weights = rows.clone().requires_grad_(), weights.clone().requires_grad_()
    experts.zero_grad(set_to_none=True)
    output = call(rows * 1, chosen, weights * 1)
    (output * torch.linspace(0.5, 1.5, output.numel(), dtype=output.dtype).view_as(output)).square().sum().backward()
    return [output.detach(), rows.grad, weights.grad, *(p.grad for p in experts.parameters())]


def compare_on_rank(rank: int, world_size: int, tensor_parallel: int, kernels: slice) -> dict[str, list[bool]]:
    """For each kernel and load, eager and compiled: is the output equal, and each gradient."""
    from torch.distributed.device_mesh import init_device_mesh
    from transformers.distributed.expert_parallel import AllToAllEP, EPImplementationInterface

    registered = EPImplementationInterface()[register_expert_parallel()]
    dense = init_device_mesh("cpu", (world_size // tensor_parallel, tensor_parallel), mesh_dim_names=("fsdp", "tp"))
    sparse = init_device_mesh("cpu", (1, world_size), mesh_dim_names=("efsdp", "ep"))
    found: dict[str, list[bool]] = {}
    for kernel, dtype in KERNELS[kernels]:
        torch.compiler.reset()
        experts = experts_of(kernel, dtype, rank)
        theirs, ours = (kind(experts, sparse["ep"], dense["tp"]) for kind in (AllToAllEP, registered))
        calls = {"eager": ours.__call__}
        if kernel != "eager":
            calls["compiled"] = torch.compile(ours.__call__, backend="aot_eager", fullgraph=True)
        for used in (LOCAL * world_size, LOCAL):  # all experts; those of the first rank, in the same graph
            generator = torch.Generator().manual_seed(rank // tensor_parallel)  # these ranks share a batch
            values = (
                torch.randn(TOKENS, WIDTH, generator=generator).to(dtype),
                torch.stack([torch.randperm(used, generator=generator)[:2] for _ in range(TOKENS)]),
                torch.rand(TOKENS, 2, generator=generator).to(dtype),
            )
            expected = output_and_gradients(theirs, experts, *values)
            for how, call in calls.items():
                results = output_and_gradients(call, experts, *values)
                found[f"{kernel} {dtype} {used} {how}"] = [
                    left is not None and right is not None and torch.equal(left, right)
                    for left, right in zip(results, expected, strict=True)
                ]
    return found


@pytest.mark.parametrize(
    ("ranks", "tensor_parallel", "kernels"), [(2, 1, slice(0, 2)), (2, 2, slice(0, 4)), (4, 2, slice(1, 2))]
)
def test_equal_to_theirs_bit_for_bit(ranks: int, tensor_parallel: int, kernels: slice) -> None:
    for found in run_ranks(compare_on_rank, ranks, tensor_parallel, kernels, timeout=400):
        assert len(found) == 2 * sum(1 if kernel == "eager" else 2 for kernel, _ in KERNELS[kernels])
        assert all(len(equal) == 5 for equal in found.values())
        assert all(map(all, found.values())), found


def switch_on_rank(rank: int, world_size: int, path: str) -> dict[str, Any]:
    """What a loaded model does before, with and after `prepare`."""
    model = load(path, rank, world_size, "auto").train()  # "auto" is all-to-all in training
    found: dict[str, Any] = {"eager": model(IDS).logits.detach()}
    try:
        torch.compile(model, backend="farskip", options={"inner": "eager"})(IDS)
    except PartialModelError as error:
        found["refused"] = (error.reason, error.way_out)
    theirs = load(path, rank, world_size, "all_to_all")
    found["explained"] = farskip_compile.explain(theirs, IDS).refusal.reason
    preparation = farskip_compile.prepare(model)
    found["changes"] = [change.what for change in preparation.changes if "exchange of tokens" in change.what]
    found["again"] = len(farskip_compile.prepare(model).changes)
    found["switched"] = model(IDS).logits.detach()
    found["compiled"] = compiled(model, connectivity="none")(IDS).detach()
    preparation.undo()
    found["undone"] = len(farskip_compile.prepare(model).changes)
    return found


def test_a_loaded_model_is_switched(tmp_path: Path) -> None:
    for found in run_ranks(switch_on_rank, 2, save("qwen2_moe", 2, tmp_path), timeout=400):
        reason, way_out = found["refused"]
        assert "branches on how many tokens" in reason
        assert found["explained"] == reason
        assert "prepare(model)" in way_out
        assert "farskip_all_to_all" in way_out
        assert found["changes"] == [f"exchange of tokens of model.layers.{n}.mlp.experts" for n in (0, 1)]
        assert found["again"] == 0
        assert found["undone"] >= 2
        assert torch.equal(found["switched"], found["eager"])
        assert torch.equal(found["compiled"], found["eager"])


def test_registering_twice_is_fine_and_an_old_transformers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.distributed.expert_parallel import EPImplementationInterface

    name = register_expert_parallel()
    registered = EPImplementationInterface()[name]
    assert register_expert_parallel() == name == "farskip_all_to_all"
    assert EPImplementationInterface()[name] is registered
    monkeypatch.setitem(sys.modules, "transformers.distributed.expert_parallel", None)
    with pytest.raises(ConfigError, match="no transformers with a registry") as caught:
        register_expert_parallel()
    assert "pip install" in caught.value.way_out
    assert farskip_compile.prepare(nn.Linear(2, 2)).changes == ()
