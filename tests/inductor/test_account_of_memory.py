"""The scheduler's account of memory against the program that Inductor generates: what is promised is what is held."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.graph import GraphLowering

import farskip_compile
from farskip_compile.models import ParallelConfig, build
from farskip_compile.testing.fake_ranks import fake_ranks
from tests.inductor.held import most_held

WIDTHS: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "heads": 4,
    "query_rank": 32,
    "kv_rank": 16,
    "nope_head_dim": 16,
    "rope_head_dim": 8,
    "value_head_dim": 16,
    "intermediate_size": 128,
    "experts": 16,
    "top_k": 4,
    "moe_intermediate_size": 64,
    "layers": ("dense", "moe", "moe", "moe"),
}
TOKENS = 128
OFF = 0.05
"""As much as scheduling may add."""


def no_kernel(self: AsyncCompile, *args: Any, **options: Any) -> Any:
    """Nothing is built or run: the program is read."""
    return lambda *given: None


def programs(options: dict[str, Any], *, trains: bool) -> list[tuple[float, float]]:
    """Bytes by the account and by the program's text, both with inputs, for each graph."""
    codes: list[str] = []
    torch.compiler.reset()
    farskip_compile.clear_schedules()
    with (
        fake_ranks(2),
        mock.patch.object(GraphLowering, "save_output_code", staticmethod(codes.append)),
        mock.patch.object(AsyncCompile, "cpp_pybinding", no_kernel),
        torch._inductor.config.patch(fx_graph_cache=False),
    ):
        parallel = ParallelConfig(ep_group=dist.group.WORLD, ep_mode="padded", capacity_factor=1.25)
        model = build("deepseek_v3", parallel=parallel, **WIDTHS)
        ids = torch.zeros(2, TOKENS, dtype=torch.int64)
        compiled = torch.compile(model, backend="farskip", fullgraph=True, options=options)
        with torch.set_grad_enabled(trains):
            output = compiled(ids)
        if trains:
            output.sum().backward()
    reports = farskip_compile.last_schedules()
    assert len(reports) == len(codes) == 1 + trains
    # of a backward graph, inputs are freed within the account and not in the text: only the forward one is compared
    inputs = sum(parameter.nbytes for parameter in model.parameters())
    return [(reports[0].after.peak_bytes, inputs + most_held(codes[0]))]  # type: ignore[union-attr]


@pytest.mark.parametrize("trains", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize(
    "options",
    [
        {"connectivity": "none"},
        {"connectivity": "full"},
        {"connectivity": "none", "pieces": 4},
        {"connectivity": "full", "pieces": 4},
    ],
    ids=str,
)
def test_the_account_is_what_the_program_holds(options: dict[str, Any], trains: bool) -> None:
    for account, held in programs(options, trains=trains):
        assert held / account - 1 == pytest.approx(0, abs=OFF)
