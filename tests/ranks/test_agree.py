# SPDX-License-Identifier: Apache-2.0
"""Ranks that would launch different collectives raise, all of them and at once, instead of hanging."""

from __future__ import annotations

import json
import operator
import time
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor.custom_graph_pass import CustomGraphPass

import farskip_compile
from farskip_compile._compat.distributed import StoreClient
from farskip_compile.compiler.ranks import agree, place
from farskip_compile.compiler.ranks.agree import check_across_ranks
from farskip_compile.compiler.ranks.compiles import Frame
from farskip_compile.errors import OrderMismatchError
from farskip_compile.records import announcement as announce
from tests.distributed.ranks import run_ranks


def raise_on_rank(rank: int, world_size: int, orders: tuple[Any, ...]) -> tuple[str, float]:
    start = time.monotonic()
    try:
        for phase, order in orders[rank]:
            sizes = [[size] for size in order[1]] if isinstance(order, tuple) else None
            check_across_ranks({"0": order[0] if isinstance(order, tuple) else order}, phase, sizes={"0": sizes})
    except OrderMismatchError as error:
        return str(error), time.monotonic() - start
    return "", time.monotonic() - start


@pytest.mark.parametrize("world_size", [2, 4])
def test_all_ranks_raise_and_show_both_orders(world_size: int) -> None:
    usual = [("forward", ["all_to_all_single float32", "all_reduce sum float32"])]
    other = [("forward", ["all_reduce sum float32", "all_to_all_single float32"])]
    orders = tuple(other if rank == 1 else usual for rank in range(world_size))
    for rank, (message, seconds) in enumerate(run_ranks(raise_on_rank, world_size, orders)):
        assert seconds < 30  # the timeout of the group is 120
        assert f"rank {rank}:" in message
        assert "rank 1:" in message
        assert "> 0: all_to_all_single float32" in message
        assert "> 0: all_reduce sum float32" in message


def test_a_shorter_order_differs_too() -> None:
    short = [("forward", ["all_reduce sum float32"])]
    long = [("forward", ["all_reduce sum float32", "all_reduce sum float32"])]
    assert all("> 1: " in message for message, _ in run_ranks(raise_on_rank, 2, (short, long)))


def test_ranks_may_meet_known_graphs_again_and_compile_different_numbers_of_them() -> None:
    """Rank 1 recompiles for another size: the same order, met a second time by this rank alone."""
    a, b = ("inference", ["all_reduce sum float32"]), ("inference", ["all_to_all_single float32"])
    results = run_ranks(raise_on_rank, 2, ([a, b], [a, b, a, b]))
    assert [message for message, _ in results] == ["", ""]


class PassingRank:
    """The store as rank 0 sees it while rank 1 reaches the same place, finds rank 0 there and goes on to another."""

    group, rank, ranks, timeout_seconds = "one that no other test has counted for", 0, (0, 1), 1.0

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def has(self, *keys: str) -> bool:
        return all(key in self.values for key in keys)

    def get(self, key: str) -> str:
        for order in (HERE, ELSEWHERE):
            self.values[place.got(place.name_of(1, order).rpartition("/")[0], 1)] = "1"
        return waiting_elsewhere(2)


HERE = '["inference", [], {}, null]'
ELSEWHERE = '["inference", ["all_to_all_single float32"], {}, null]'


def waiting_elsewhere(wait: int) -> str:
    return json.dumps({"wait": wait, "epoch": 1, "left": 0, "run": 0, "order": ELSEWHERE})


def test_a_rank_that_went_on_in_between_is_not_taken_for_one_that_is_elsewhere() -> None:
    client = cast(StoreClient, PassingRank())
    agree._wait_for_all(place.place_of(client, HERE, Frame()))


class RaisingRank(PassingRank):
    """While rank 1 arrives elsewhere, finds rank 0 here, and raises, all right after rank 0 has looked for it."""

    group, raised = "another one", False

    def get(self, key: str) -> str:
        there = waiting_elsewhere(1) if self.raised else ""
        self.raised = True
        return there


def test_what_a_rank_raised_about_both_is_not_taken_for_a_failure_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    client = RaisingRank()
    monkeypatch.setattr(agree, "failure_among", lambda ranks: (1, "gave up") if client.raised else None)
    with pytest.raises(OrderMismatchError, match="all_to_all_single"):
        agree._wait_for_all(place.place_of(cast(StoreClient, client), HERE, Frame()))


REDUCED = ["all_reduce sum float32", "all_gather_into_tensor float32"]


def sized(tokens: int) -> tuple[str, tuple[list[str], list[list[int]]]]:
    return "inference", (REDUCED, [[4, 16], [tokens, 16]])


def test_other_sizes_raise() -> None:
    for rank, (message, seconds) in enumerate(run_ranks(raise_on_rank, 2, ([sized(8)], [sized(6)]))):
        assert seconds < 30
        assert "would launch collectives of different sizes" in message
        assert f"rank {rank}:" in message
        assert all(f"> 1: all_gather_into_tensor float32 {tokens}x16" in message for tokens in (6, 8))
        assert "pad them" in message


def test_sizes_that_are_not_fixed_fit_any_other() -> None:
    """One rank has compiled for any size, the other one for each; or again for a size that the first knows."""
    dynamic = ("inference", REDUCED)
    ranks = (
        ([sized(8), dynamic], [sized(8), sized(6), sized(4)]),
        ([sized(8), sized(6)], [sized(8), sized(6), sized(8)]),
    )
    for orders in ranks:
        assert [message for message, _ in run_ranks(raise_on_rank, 2, orders)] == ["", ""]


def given_other_batches(rank: int, world_size: int, inner: str) -> str:
    class Reduced(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return funcol.all_reduce(x * 2, "sum", dist.group.WORLD) + 1

    options = {"inner": inner, "connectivity": "none"}
    try:
        torch.compile(Reduced(), backend="farskip", fullgraph=True, options=options)(torch.randn(4 + rank, 16))
    except OrderMismatchError as error:
        return str(error)
    return ""


def test_batches_of_other_sizes_raise_before_the_collective() -> None:
    for message in run_ranks(given_other_batches, 2, "eager"):
        assert "all_reduce sum float32 4x16" in message
        assert "all_reduce sum float32 5x16" in message


def test_shares_of_other_sizes_are_not_compared() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(8, 4)
    size = graph.call_function(operator.getitem, ((4, 4), 0))
    for shares, expected in (([4, 4], [[[8, 4]]]), ([3, 5], None), ([size, size], None)):
        sent = graph.call_function(torch.ops._c10d_functional.all_to_all_single.default, (x, shares, shares, "g"))
        assert announce.collective_sizes(graph) == {"g": expected}
        graph.erase_node(sent)


class Exchanging(nn.Module):
    """Products with exchanges between them: no residual stream, but collectives to schedule, and quick to build."""

    def __init__(self, exchanges: int) -> None:
        super().__init__()
        self.exchanges = exchanges
        self.weight = nn.Parameter(torch.randn(16, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.exchanges):
            x = funcol.all_to_all_single(x @ self.weight, None, None, dist.group.WORLD) @ self.weight
        return x


class Label(CustomGraphPass):
    """Does nothing, but is a part of the cache keys: artifacts of one test, or rank, are not found by another."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, graph: torch.fx.Graph) -> None:
        pass

    def uuid(self) -> str:
        return self.text


def compiled_on_rank(rank: int, world_size: int, folder: str, connectivity: tuple[str, ...]) -> dict[str, Any]:
    torch._inductor.config.fx_graph_cache = True
    model = Exchanging(2 if connectivity[rank] == "twice" else 1)  # a fault: once more than the other rank
    options = {"connectivity": "none", "inductor": {"post_grad_custom_post_pass": Label(f"{folder} {rank}")}}
    compiled = torch.compile(model, backend="farskip", fullgraph=True, options=options)
    start = time.monotonic()
    try:
        compiled(torch.randn(4, 16)).sum().backward()
    except OrderMismatchError as error:
        return {"message": str(error), "seconds": time.monotonic() - start}
    schedules = [report.to_json() for report in farskip_compile.reports().schedules]
    return {"message": "", "schedules": schedules, "hits": counters["inductor"]["fxgraph_cache_hit"]}


def test_compiled_models_that_differ_raise(tmp_path: Path) -> None:
    for found in run_ranks(compiled_on_rank, 2, str(tmp_path), ("none", "twice"), timeout=400):
        assert "would launch different collectives" in found["message"]
        assert "all_to_all_single float32" in found["message"]


def test_on_a_warm_cache_the_order_is_checked_and_reported_all_the_same(tmp_path: Path) -> None:
    cold, _ = run_ranks(compiled_on_rank, 2, str(tmp_path), ("none", "none"), timeout=400)
    warm, _ = run_ranks(compiled_on_rank, 2, str(tmp_path), ("none", "none"), timeout=400, fresh=True)
    assert (cold["hits"], warm["hits"]) == (0, 2)
    assert [schedule["phase"] for schedule in warm["schedules"]] == ["forward", "backward"]
    assert warm["schedules"] == cold["schedules"]
    assert all(schedule["level"] == "kernels" for schedule in warm["schedules"])
