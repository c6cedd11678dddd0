# SPDX-License-Identifier: Apache-2.0
"""The form with exchanges in chunks by hand: the plain decoder's function, each exchange launched in chunks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from hand_forms.chunked_form import ChunkedForm

from farskip_compile.errors import ConfigError, ParallelismError
from farskip_compile.models import ParallelConfig, build
from tests.benchmarks.recorded_order import recorded
from tests.compare import assert_gradients_close, run_with_gradients
from tests.distributed.ranks import run_ranks

SMALL: dict[str, Any] = {"vocab_size": 32, "hidden_size": 32, "layers": ("dense", "moe", "moe"), "experts": 8}
MODES = {"dropless": {"ep_mode": "dropless"}, "padded": {"ep_mode": "padded", "capacity_factor": 1.0}}


def compare_on_rank(rank: int, world_size: int) -> None:
    """Outputs bit for bit, gradients to rounding, and the order of launches."""
    tokens = torch.randint(0, 32, (2, 7), generator=torch.Generator().manual_seed(rank))
    for name, overrides in (("deepseek_v3", {}), ("qwen3_moe", {"residual_scale": 0.5})):
        for mode in MODES.values():
            parallel = ParallelConfig(ep_group=dist.group.WORLD, **mode)  # type: ignore[arg-type]
            model = build(name, dtype=torch.float64, parallel=parallel, **(SMALL | overrides))  # type: ignore[arg-type]
            expected, expected_gradients = run_with_gradients(model, model, tokens)
            for chunks in (1, 3):
                form = ChunkedForm(model, chunks=chunks)
                with recorded(model, []) as events:
                    output, gradients = run_with_gradients(form, model, tokens)
                launched = [event for event in events if event.startswith("launch")]
                assert len(launched) == 2 * 2 * 2 * chunks, events  # two layers, there and back, forward and backward
                torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
                assert_gradients_close(gradients, expected_gradients, 1e-12)


def test_ranks_compute_the_plain_model() -> None:
    run_ranks(compare_on_rank, 2, timeout=300)


def refused_on_rank(rank: int, world_size: int) -> None:
    model = build("mixtral", parallel=ParallelConfig(ep_group=dist.group.WORLD), **SMALL)
    with pytest.raises(ConfigError, match="4 experts on each rank make no 5 chunks"):
        ChunkedForm(model, chunks=5)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ParallelismError, match="by all-to-all"):
        ChunkedForm(build("mixtral", **SMALL))
    run_ranks(refused_on_rank, 2, timeout=300)
