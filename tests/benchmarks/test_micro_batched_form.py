# SPDX-License-Identifier: Apache-2.0
"""The form with two micro-batches by hand: the plain decoder's function of each half of the batch."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from hand_forms.micro_batched_form import MicroBatchedForm
from torch import nn

from farskip_compile.errors import ConfigError, ParallelismError
from farskip_compile.models import ParallelConfig, build
from tests.benchmarks.recorded_order import recorded
from tests.benchmarks.test_chunked_form import MODES, SMALL
from tests.compare import assert_gradients_close, run_with_gradients
from tests.distributed.ranks import run_ranks


class Halves(nn.Module):
    """The model on two and on one sequence."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.model(ids[:2]), self.model(ids[2:])])


def compare_on_rank(rank: int, world_size: int) -> dict[str, list[str]]:
    """Outputs and gradients to rounding; what was recorded of one forward pass without drops."""
    tokens = torch.randint(0, 32, (3, 7), generator=torch.Generator().manual_seed(rank))
    events: dict[str, list[str]] = {}
    for name, overrides in (("deepseek_v3", {}), ("qwen3_moe", {"residual_scale": 0.5})):
        for mode, options in MODES.items():
            parallel = ParallelConfig(ep_group=dist.group.WORLD, **options)  # type: ignore[arg-type]
            model = build(name, dtype=torch.float64, parallel=parallel, **(SMALL | overrides))  # type: ignore[arg-type]
            form = MicroBatchedForm(model)
            expected, expected_gradients = run_with_gradients(Halves(model), model, tokens)
            output, gradients = run_with_gradients(form, model, tokens)
            torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
            assert_gradients_close(gradients, expected_gradients, 1e-12)
            if mode == "dropless":  # no row is dropped: the halves are the whole
                torch.testing.assert_close(output, model(tokens), rtol=1e-12, atol=1e-12)
            with torch.no_grad(), recorded(model, []) as events[f"{name} {mode}"]:
                form(tokens)
    return events


def test_ranks_compute_the_plain_model_on_each_half() -> None:
    for found in run_ranks(compare_on_rank, 2, timeout=300):
        for events in found.values():
            assert_one_exchange_is_always_in_flight(events)


def assert_one_exchange_is_always_in_flight(events: list[str]) -> None:
    """But at the first launch and the last wait: launches of both halves, then a wait for each launch."""
    flying = [event.split()[0] for event in events if event.startswith(("launch", "wait"))]
    assert flying == ["launch", "launch", *["wait", "launch"] * (len(flying) // 2 - 2), "wait", "wait"], events
    assert flying.count("launch") == 2 * 2 * 2  # two halves, two layers, there and back


def test_one_sequence_has_no_halves() -> None:
    run_ranks(refused_on_rank, 2, timeout=300)


def refused_on_rank(rank: int, world_size: int) -> None:
    model = build("mixtral", parallel=ParallelConfig(ep_group=dist.group.WORLD, ep_mode="dropless"), **SMALL)
    with pytest.raises(ConfigError, match="a batch of one sequence"):
        MicroBatchedForm(model)(torch.zeros(1, 4, dtype=torch.int64))


def test_a_model_on_one_process_is_refused() -> None:
    with pytest.raises(ParallelismError, match="by all-to-all"):
        MicroBatchedForm(build("mixtral", **SMALL))
