# SPDX-License-Identifier: Apache-2.0
"""`assert_same_on_all_ranks` on two gloo ranks: passes or fails on both of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from farskip_compile import FarSkipConfig
from farskip_compile.models import ParallelConfig, build
from farskip_compile.testing import assert_same_on_all_ranks
from tests.distributed.ranks import run_ranks
from tests.testing.texts import failure_of

SMALL: dict[str, Any] = {"vocab_size": 32, "hidden_size": 32, "layers": ("moe", "moe")}


def parallel(layout: str) -> ParallelConfig:
    world = dist.group.WORLD
    if layout == "tp":
        return ParallelConfig(tp_group=world, sequence_parallel=True)
    return ParallelConfig(ep_group=world, ep_mode=layout)  # type: ignore[arg-type]


def ids(rank: int = 0) -> torch.Tensor:
    return torch.randint(0, 32, (2, 6), generator=torch.Generator().manual_seed(rank))


def outcome(model: Any, *args: Any, **options: Any) -> str:
    """Empty if the assertion passes, else what it says."""
    text = ""
    try:
        assert_same_on_all_ranks(model, *args, **options)
    except AssertionError as error:
        text = str(error)
    assert all(len(line) <= 80 for line in text.splitlines()) or "refused" in text, text
    return text


def scenarios(rank: int, world_size: int) -> dict[str, str]:
    """What this rank is told, by scenario; rank 1 is the one that differs."""
    odd = rank == 1
    found = {}
    for layout in ("padded", "tp"):
        model = build("mixtral", parallel=parallel(layout), **SMALL)
        found[f"same {layout}"] = outcome(model, ids(0 if layout == "tp" else rank))
    wish = FarSkipConfig(layers=(0, 1) if odd else (1, 1))
    model = build("mixtral", parallel=parallel("padded"), **SMALL)
    found["layers"] = outcome(model, ids(), config=wish)
    options = {"connectivity": "mlp" if odd else "full"}
    found["compiled"] = outcome(torch.compile(model, backend="farskip", options=options), ids())
    found["schedule"] = outcome(model, ids(), config=FarSkipConfig(memory_increase=0.1 if odd else 0.2))
    layers = ("moe", "moe", "moe") if odd else SMALL["layers"]
    more = build("mixtral", parallel=parallel("padded"), **{**SMALL, "layers": layers})
    found["depth"] = outcome(more, ids())
    other = build("mixtral", parallel=parallel("allgather" if odd else "padded"), **SMALL)
    found["collectives"] = outcome(other, ids())
    found["refused"] = outcome(model, ids(), config=FarSkipConfig(layers=(0, 9) if odd else (0, 1)))
    found["broken"] = outcome(Breaks(odd), ids())
    alone = dist.new_group([rank]) if rank == 0 else dist.new_group([0])
    found["alone"] = outcome(model, ids(), group=alone) if rank == 0 else ""
    found["group"] = outcome(model, ids(), group=dist.new_group([0, 1]))
    return found


class Breaks(torch.nn.Module):
    """On one rank it raises an error of its own in its forward."""

    def __init__(self, odd: bool) -> None:
        super().__init__()
        self.odd = odd
        self.model = build("mixtral", **SMALL)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self.odd:
            raise ValueError("weights are missing")
        return self.model(ids)


def test_all_ranks_pass_or_all_fail() -> None:
    results = run_ranks(scenarios, 2, timeout=300)
    for rank, found in enumerate(results):
        for name in [name for name in found if name.startswith("same")] + ["group"]:
            assert found[name] == "", (rank, name, found[name])
        text = found["layers"]
        headline = "2 ranks do not compile the same: they differ in configuration and table and graph "
        assert " ".join(text.split()).startswith(headline)
        assert "rank 1: layers = [0, 1]" in text
        assert "rank 0: layers = [1, 1]" in text
        assert "the table of rank 1:" in text
        assert "[ ]" in text
        assert 'connectivity = "mlp"' in found["compiled"]
        assert found["schedule"].startswith("2 ranks do not compile the same: they differ in configuration\n")
        assert "memory_increase = 0.2" in found["schedule"]
        assert "table and graph" in found["depth"]
        assert "(nothing)" in found["depth"]
        assert "order of collectives" in found["collectives"]
        assert "all_gather_into_tensor" in found["collectives"]
        assert found["refused"].startswith("the model is refused on rank 1 of 2\nrank 1: LayerRangeError")
        assert "lies outside the model" in found["refused"]
        assert found["broken"].startswith("the model is refused on rank 1 of 2\nrank 1: ")
        assert "test_ranks.py:" in found["broken"], "the line that raises"
    assert "no other ranks to compare with" in " ".join(results[0]["alone"].split())


def test_one_process_alone_has_nothing_to_compare(two_ranks: Any) -> None:
    assert "sends nothing" in " ".join(failure_of(assert_same_on_all_ranks, build("mixtral"), ids()).split())


def test_without_a_process_group() -> None:
    assert "not initialised" in failure_of(assert_same_on_all_ranks, build("mixtral"), ids())
