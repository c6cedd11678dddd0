# SPDX-License-Identifier: Apache-2.0
"""What launches move, and the alpha-beta formulas on worked examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import fx
from torch._subclasses import FakeTensorMode

from farskip_compile.costs import HardwareProfile, Link, PerCollective, collective_seconds, load_profile, profiles
from farskip_compile.costs.collectives import CollectiveCost, collective_cost, is_launch
from farskip_compile.costs.estimates import Estimates
from farskip_compile.costs.operators import op_cost
from farskip_compile.costs.profile import COLLECTIVE_KINDS
from farskip_compile.costs.sizes import SizeHints
from farskip_compile.errors import ConfigError, UnsupportedPatternError
from farskip_compile.passes.graph.declared import Declared, note_declared
from tests.costs.traced import fake_ranks, trace

c10d = torch.ops._c10d_functional
ROWS, WIDTH, RANKS = 8, 16, 4
BYTES = ROWS * WIDTH * 2


@pytest.fixture(scope="module", autouse=True)
def four_ranks():
    with fake_ranks(RANKS):
        yield


def test_every_kind_of_launch() -> None:
    """bfloat16 [8, 16] on 4 ranks: 256 bytes."""
    x = torch.zeros(ROWS, WIDTH, dtype=torch.bfloat16)
    cases = {
        c10d.all_to_all_single.default: (([2] * 4, [2] * 4, "0"), "all_to_all", BYTES),
        c10d.all_reduce.default: (("sum", "0"), "all_reduce", BYTES),
        c10d.all_reduce_.default: (("sum", "0"), "all_reduce", BYTES),
        c10d.all_gather_into_tensor.default: ((4, "0"), "all_gather", 4 * BYTES),
        c10d.reduce_scatter_tensor.default: (("sum", 4, "0"), "reduce_scatter", BYTES),
        c10d.broadcast.default: ((0, "0"), "broadcast", BYTES),
        c10d.broadcast_.default: ((0, "0"), "broadcast", BYTES),
    }
    for op, (args, kind, size) in cases.items():
        (launch,) = launches(trace(calling(op, args), x))
        assert collective_cost(launch, int) == CollectiveCost(kind, size, "0", RANKS), op
        assert (op_cost(launch, int).kind, op_cost(launch, int).launches) == ("collective", 0)
    coalesced = {
        c10d.all_reduce_coalesced.default: (("sum", "0"), "all_reduce", 2 * BYTES),
        c10d.all_gather_into_tensor_coalesced.default: ((4, "0"), "all_gather", 8 * BYTES),
        c10d.reduce_scatter_tensor_coalesced.default: (("sum", 4, "0"), "reduce_scatter", 2 * BYTES),
    }
    for op, (args, kind, size) in coalesced.items():
        (launch,) = launches(trace(calling(op, args, twice=True), x))
        assert collective_cost(launch, int) == CollectiveCost(kind, size, "0", RANKS), op


def calling(op: Any, args: tuple[Any, ...], twice: bool = False) -> Callable[[torch.Tensor], torch.Tensor]:
    def exchange(x):
        return c10d.wait_tensor(op([x, x + 1], *args)[0] if twice else op(x, *args))

    return exchange


def test_the_output_of_an_all_gather_is_no_input() -> None:
    def gather(x, out):
        return c10d.wait_tensor(c10d.all_gather_into_tensor_out(x, 4, "0", out=out))

    (launch,) = launches(trace(gather, torch.zeros(2, 4), torch.zeros(8, 4)))
    assert collective_cost(launch, int) == CollectiveCost("all_gather", 8 * 4 * 4, "0", RANKS)


def test_uneven_splits_count_the_larger_side() -> None:
    def exchange(x):
        return c10d.wait_tensor(c10d.all_to_all_single(x, [9, 1, 1, 1], [1, 1, 1, 1], "0"))

    (launch,) = launches(trace(exchange, torch.zeros(4, 2)))
    assert collective_cost(launch, int).bytes == 12 * 2 * 4


def test_other_nodes_are_no_launches() -> None:
    graph = trace(lambda x: c10d.wait_tensor(c10d.all_reduce(x, "sum", "0")) + 1, torch.zeros(4))
    assert len(launches(graph)) == 1
    others = [node for node in graph.nodes if not is_launch(node)]
    assert [op_cost(node, int).kind for node in others if "wait" in node.name] == ["wait"]
    for node in others:
        with pytest.raises(UnsupportedPatternError, match="no collective"):
            collective_cost(node, int)


def test_symbolic_rows_install_no_guard() -> None:
    def exchange(x):
        part = [x.shape[0] // RANKS] * RANKS
        return c10d.wait_tensor(c10d.all_to_all_single(x, part, part, "0"))

    graph = trace(exchange, torch.zeros(ROWS, 6), dynamic=True)
    (launch,) = launches(graph)
    env = launch.meta["val"].shape[0].node.shape_env
    before = list(env.guards)
    assert collective_cost(launch, SizeHints(graph)).bytes == ROWS * 6 * 4
    assert list(env.guards) == before


def test_an_uneven_exchange_has_two_sides() -> None:
    def exchange(x):
        return c10d.wait_tensor(c10d.all_to_all_single(x, [1] * RANKS, [ROWS // RANKS] * RANKS, "0"))

    (launch,) = launches(trace(exchange, torch.zeros(ROWS, 6)))
    assert collective_cost(launch, int) == CollectiveCost("all_to_all", ROWS * 6 * 4, "0", RANKS, RANKS * 6 * 4)
    base = load_profile("cpu-gloo")
    in_turns, at_once, unknown = (
        Estimates(launch.graph, replace(base, intra_node=replace(base.intra_node, duplex=part))).collective(launch)
        for part in (0.0, 1.0, None)
    )
    assert in_turns < at_once == unknown


def test_what_came_in_flight_takes_no_longer_than_it_is_late() -> None:
    def exchange(x):
        return c10d.wait_tensor(c10d.all_to_all_single(x, [1] * RANKS, [1] * RANKS, "0"))

    (launch,) = launches(trace(exchange, torch.zeros(RANKS, 6)))
    profile = load_profile("cpu-gloo")
    whole = Estimates(launch.graph, profile).collective(launch)
    found = [Estimates(launch.graph, profile, came=late).arrival(launch) for late in (None, 0.0, whole / 2, 2 * whole)]
    assert found == [whole, 0.0, whole / 2, whole]


def launches(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if is_launch(node)]


# Formulas


def even(value: float) -> PerCollective:
    return PerCollective(**dict.fromkeys(COLLECTIVE_KINDS, value))


INSIDE = Link(bandwidth=100e9, efficiency=even(0.5), latency=even(10e-6), step_latency=1e-6, interference=0.2)
OUTSIDE = Link(bandwidth=10e9, efficiency=even(0.8), latency=even(50e-6), step_latency=5e-6, interference=0.1)


@pytest.fixture(scope="module")
def profile() -> HardwareProfile:
    """50 GB/s inside a node of 4 ranks, 8 GB/s from a rank to other nodes."""
    sources = {**load_profile("h100").sources, "intra_node": "assumed"}
    return replace(load_profile("h100"), intra_node=INSIDE, inter_node=OUTSIDE, ranks_per_node=4, sources=sources)


MEGABYTE = 10**6
ONE_NODE = {  # 4 ranks, 1 MB: latency, further steps, 20 us for all of it at 50 GB/s
    "all_to_all": 10 + 2 + 20 * 3 / 4,
    "all_gather": 10 + 2 + 20 * 3 / 4,
    "reduce_scatter": 10 + 2 + 20 * 3 / 4,
    "all_reduce": 10 + 5 + 20 * 6 / 4,
    "broadcast": 10 + 2 + 20,
}
TWO_NODES = {  # 8 ranks: the all-to-all sends a half over its own 8 GB/s; rings have 4 such links, 32 GB/s
    "all_to_all": 50 + 6 * 5 + 125 / 2,
    "all_gather": 50 + 6 * 5 + 31.25 * 7 / 8,
    "reduce_scatter": 50 + 6 * 5 + 31.25 * 7 / 8,
    "all_reduce": 50 + 13 * 5 + 31.25 * 14 / 8,
    "broadcast": 50 + 6 * 5 + 31.25,
}
ONE_EACH = {  # 4 ranks on nodes of their own: 8 GB/s for everything
    "all_to_all": 50 + 2 * 5 + 125 * 3 / 4,
    "all_gather": 50 + 2 * 5 + 125 * 3 / 4,
    "reduce_scatter": 50 + 2 * 5 + 125 * 3 / 4,
    "all_reduce": 50 + 5 * 5 + 125 * 6 / 4,
    "broadcast": 50 + 2 * 5 + 125,
}


@pytest.mark.parametrize("kind", COLLECTIVE_KINDS)
def test_worked_examples(profile: HardwareProfile, kind: str) -> None:
    for expected, ranks, ranks_per_node in ((ONE_NODE, 4, None), (TWO_NODES, 8, None), (ONE_EACH, 4, 1)):
        seconds = collective_seconds(kind, MEGABYTE, ranks, profile, ranks_per_node)
        assert seconds * 1e6 == pytest.approx(expected[kind])
    assert collective_seconds(kind, 0, 1, profile) == profile.launch_seconds


def test_a_mesh_gives_a_small_group_a_part_of_its_bandwidth(profile: HardwareProfile) -> None:
    """7 wires of 16 GB/s: two ranks have one of them."""
    mesh = replace(profile, ranks_per_node=8, intra_node=replace(INSIDE, bandwidth=112e9, peer_bandwidth=16e9))
    assert collective_seconds("broadcast", MEGABYTE, 2, mesh) * 1e6 == pytest.approx(10 + 1e6 / 8e3)
    assert collective_seconds("broadcast", MEGABYTE, 8, mesh) * 1e6 == pytest.approx(10 + 6 + 1e6 / 56e3)


def test_all_to_all_does_not_pay_twice(profile: HardwareProfile) -> None:
    """Where the inside of a node is the slower part, it is what counts."""
    slow_inside = replace(profile, intra_node=replace(INSIDE, bandwidth=1e9))
    seconds = collective_seconds("all_to_all", MEGABYTE, 8, slow_inside)
    assert seconds * 1e6 == pytest.approx(50 + 30 + 2000 * 3 / 8)


@given(
    st.sampled_from(profiles()),
    st.sampled_from(COLLECTIVE_KINDS),
    st.integers(0, 10**10),
    st.integers(0, 10**10),
    st.integers(1, 128),
    st.none() | st.integers(1, 16),
)
def test_more_bytes_are_never_cheaper(
    name: str, kind: str, size: int, more: int, ranks: int, ranks_per_node: int | None
) -> None:
    profile = load_profile(name)
    seconds = collective_seconds(kind, size, ranks, profile, ranks_per_node)
    assert 0.0 < seconds <= collective_seconds(kind, size + more, ranks, profile, ranks_per_node)


@pytest.mark.parametrize(
    ("kind", "size", "ranks", "ranks_per_node"),
    [("gather", 1, 2, None), ("all_reduce", -1, 2, None), ("all_reduce", 1, 0, None), ("all_reduce", 1, 2, 0)],
)
def test_impossible_questions(kind: str, size: int, ranks: int, ranks_per_node: int | None) -> None:
    with pytest.raises(ConfigError):
        collective_seconds(kind, size, ranks, load_profile("h100"), ranks_per_node)


def test_a_group_named_by_an_object() -> None:
    """Graphs compiled for all ranks at once hold the group, not its name."""
    graph = fx.Graph()
    x, group = graph.placeholder("x"), graph.placeholder("group")
    with FakeTensorMode():
        x.meta["val"] = torch.empty(3, 4)
    group.meta["val"] = dist.group.WORLD
    launch = graph.call_function(c10d.all_reduce.default, (x, "sum", group))
    launch.meta["val"] = x.meta["val"]
    assert collective_cost(launch, int) == CollectiveCost("all_reduce", 48, dist.group.WORLD.group_name, RANKS)


@pytest.mark.parametrize(("kind", "as_if"), [("exchange", "all_to_all"), ("reduction", "all_reduce")])
def test_what_a_user_declared_to_block_takes_as_long_as_what_it_is(kind: Any, as_if: Any) -> None:
    """Before fusion and after; among all ranks, since it names no group."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = FakeTensorMode().from_tensor(torch.empty(ROWS, WIDTH))
    node = graph.call_function(torch.ops.aten.sin.default, (x,))
    node.meta["val"] = x.meta["val"]
    note_declared(graph, [Declared("mylib::blocks", kind)], lambda node: "mylib::blocks")
    profile = load_profile("h100")
    right = collective_seconds(as_if, 4 * ROWS * WIDTH, dist.get_world_size(), profile)
    assert Estimates(graph, profile).compute(node) == right
    assert Estimates(graph, profile).kernel([(True, [node])], 1000) == right
