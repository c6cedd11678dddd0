# SPDX-License-Identifier: Apache-2.0
"""torchtitan's parallel models on two gloo ranks: its own `parallelize` and all-to-all dispatcher.

Expert parallelism: each rank has tokens of its own and half of the experts. The graph is captured and rewired, and the
compiled model does what eager forms do on the ranks. With tensor and sequence parallelism besides, ranks share tokens,
and the model does what one process does. Gradients: see `tests/models/test_torchtitan.py`.

torchtitan has several ways to keep shares of parameters. Its trainer's default, `spmd_types`, calls an all-to-all in
eager mode that gloo does not have for parts of unequal size. So eager forms run under `partial_dtensor`, and the
compiled model under both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

import farskip_compile
from farskip_compile import CompileReport
from tests.compare import relative_difference, run_with_gradients
from tests.compile_each import compile_each
from tests.distributed.ranks import run_ranks

pytest.importorskip("torchtitan")

GRADIENTS = 1e-8
SOME = slice(1, 3)
"""Two layers with experts."""
Result = dict[str, tuple[bool, float]]
ALL_TO_ALLS = ("all_to_all_single",) * 3  # of token counts, of tokens, of what the experts made of them

LEFT_OUT = {"attention.0": (), "moe.0": ("a0",), "attention.1": ("r0",), "moe.1": ("a1",)}


@contextmanager
def parallel(model: nn.Module, world_size: int, spmd_backend: str, tensor_parallel: int = 1) -> Iterator[None]:
    """Within the block, `model` is in parallel form, its experts too."""
    from torchtitan.distributed import ParallelDims, parallel_dims, utils

    with patch.object(parallel_dims, "device_type", "cpu"):  # "cuda", where there is no accelerator
        dims = ParallelDims(
            dp_replicate=1,
            dp_shard=world_size // tensor_parallel,
            cp=1,
            tp=tensor_parallel,
            pp=1,
            ep=world_size,
            world_size=world_size,
            spmd_backend=spmd_backend,
        )
        dims.build_mesh()
    utils.set_spmd_backend(spmd_backend)
    with utils.get_spmd_context(parallel_dims=dims)():
        model.parallelize(dims)
        yield


def run(function: Any, model: nn.Module, args: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Output, and this rank's share of all gradients."""
    output, gradients = run_with_gradients(function, model, *args)
    return output, {name: g.to_local() if hasattr(g, "to_local") else g for name, g in gradients.items()}


def compiled(model: nn.Module, **options: str) -> Any:
    torch.compiler.reset()
    return torch.compile(model, backend="farskip", fullgraph=True, options=options)


def compare_on_rank(rank: int, world_size: int) -> tuple[Result, list[dict[str, Any]]]:
    """What is compared: are outputs the same, the largest difference of gradients; and what the reports say."""
    from tests.models import titan

    results: Result = {}

    def compare(name: str, one: tuple[Any, Any], other: tuple[Any, Any]) -> None:
        assert one[1].keys() == other[1].keys()
        worst = max(relative_difference(one[1][key], other[1][key]) for key in one[1])
        results[name] = (torch.equal(one[0], other[0]), worst)

    with titan.on_cpu():
        sharding = {"enable_ep": True, "enable_sp": False}
        model, (_, *others) = titan.build_deepseek_v3(SOME, torch.float64, sharding)
        args = (titan.token_ids(rank), *others)
        whole = model(*args).detach()
        model.train()
        with parallel(model, world_size, "partial_dtensor"):
            torch.compiler.reset()
            seen: list[CompileReport] = []
            eager = {"inner": "eager", "on_report": seen.append}
            wishes = ({**eager, "connectivity": "none"}, eager, None)
            as_written, full, plain = (run(one, model, args) for one in compile_each(model, wishes))
            results["as written, and one process"] = (torch.equal(as_written[0], whole), 0.0)
            compare("as written, and eager", as_written, run(model, model, args))
            compare("as written, and plain torch.compile", as_written, plain)
            compare("full, and its form by hand", full, run(titan.EagerForm(model), model, args))
            assert relative_difference(full[0], as_written[0]) > 1e-3
        model, _ = titan.build_deepseek_v3(SOME, torch.float64, sharding)
        model.train()
        with parallel(model, world_size, "spmd_types"):
            compare("full, with types instead of DTensors", run(compiled(model, inner="eager"), model, args), full)
    return results, told([*seen, farskip_compile.reports().compiles[-1]])


def shared_tokens_on_rank(rank: int, world_size: int) -> tuple[float, list[dict[str, Any]]]:
    """Tensor, sequence and expert parallelism: difference of outputs from one process, and what the report says."""
    from tests.models import titan

    with titan.on_cpu(), torch.no_grad():
        model, args = titan.build_deepseek_v3(SOME, torch.float64, {"enable_ep": True, "enable_sp": True})
        expected = titan.EagerForm(model)(*args)
        with parallel(model, world_size, "partial_dtensor", tensor_parallel=world_size):
            output: Any = compiled(model, inner="eager")(*args)
        return relative_difference(output.full_tensor(), expected), told(farskip_compile.reports().compiles)


def told(reports: Sequence[CompileReport]) -> list[dict[str, Any]]:
    return [
        {
            "wiring": report.wiring_after,
            "left out": {row.name: tuple(report.table.names(row.left_out)) for row in report.rows},
            "collectives": {row.name: report.table.collectives(row) for row in report.rows},
        }
        for report in reports
    ]


def test_expert_parallel_training_step() -> None:
    for results, (as_written, *full) in run_ranks(compare_on_rank, 2, timeout=300):
        assert len(results) == 5
        bad = {name: result for name, result in results.items() if not result[0] or result[1] > GRADIENTS}
        assert not bad, bad
        assert results["as written, and eager"][1] == 0.0
        assert as_written["wiring"] == "standard"
        assert len(full) == 2  # one graph each
        for report in full:
            assert report["wiring"] == "full"
            assert report["left out"] == LEFT_OUT
            assert report["collectives"] == {n: ALL_TO_ALLS if n.startswith("moe") else () for n in LEFT_OUT}


def test_tensor_sequence_and_expert_parallel() -> None:
    gather_and_scatter = ("all_gather_into_tensor", "reduce_scatter_tensor")
    for difference, (report,) in run_ranks(shared_tokens_on_rank, 2, timeout=300):
        assert difference < 1e-8
        assert report["wiring"] == "full"
        assert report["left out"] == LEFT_OUT
        for name, collectives in report["collectives"].items():
            experts = ALL_TO_ALLS if name.startswith("moe") else ()
            assert collectives == (*experts, *gather_and_scatter), name  # these of shared experts, or of attention
