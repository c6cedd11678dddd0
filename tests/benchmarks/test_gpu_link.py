# SPDX-License-Identifier: Apache-2.0
"""The emulated link of `gpu.py`: what arrives, how long it takes, and that a launch waits for nothing. On a CPU."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from gpu_bench.device import Cpu
from gpu_bench.link import EmulatedLink, Wire, emulated, profile_of
from gpu_bench.links import wire_of
from hypothesis import given
from hypothesis import strategies as st

from farskip_compile._compat.collectives import all_gather, all_reduce, all_to_all_single, reduce_scatter, wait_tensor
from farskip_compile.costs import collective_seconds, load_profile

RANKS = 4
Call = Callable[[torch.Tensor, Any], torch.Tensor]
CALLS: dict[str, Call] = {
    "all_to_all": lambda x, group: all_to_all_single(x, None, None, group),
    "all_reduce": lambda x, group: all_reduce(x, "sum", group),
    "all_gather": lambda x, group: all_gather(x, 0, group),
    "reduce_scatter": lambda x, group: reduce_scatter(x, "sum", 0, group),
}


class Recorded(Cpu):
    """What was asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.flown: list[tuple[str, float, int]] = []

    def fly(self, kind: str, move: Callable[[], None], seconds: float, blocks: int) -> Any:
        self.flown.append((kind, seconds, blocks))
        return super().fly(kind, move, 0.0, blocks)


@pytest.fixture(scope="module")
def device() -> Recorded:
    return Recorded()


@pytest.fixture(scope="module")
def group(device: Recorded) -> Iterator[EmulatedLink]:
    with emulated(RANKS, device) as made:
        yield made


def theirs(kind: str, mine: torch.Tensor) -> torch.Tensor:
    """What rank 0 receives if all ranks have sent what it has."""
    everywhere = [mine.clone() for _ in range(RANKS)]
    if kind == "all_to_all":  # the part for rank 0 of each
        return torch.cat([one.chunk(RANKS)[0] for one in everywhere])
    if kind == "all_gather":
        return torch.cat(everywhere)
    added = torch.stack(everywhere).sum(0)
    return added if kind == "all_reduce" else added.chunk(RANKS)[0]


@pytest.mark.parametrize("kind", ["all_reduce", "all_gather", "reduce_scatter"])
def test_what_arrives(group: EmulatedLink, kind: str) -> None:
    mine = torch.arange(8.0 * 3).view(8, 3)
    assert torch.equal(CALLS[kind](mine, group), theirs(kind, mine))


def test_an_all_to_all_is_a_loopback(group: EmulatedLink) -> None:
    """Of equal parts, it returns what was sent; of others, as much as there is room for."""
    mine = torch.arange(8.0 * 3).view(8, 3)
    assert torch.equal(CALLS["all_to_all"](mine, group), mine)
    same = mine[:2].repeat(RANKS, 1)  # what all ranks get alike, they also get from a loopback
    assert torch.equal(CALLS["all_to_all"](same, group), theirs("all_to_all", same))
    more = all_to_all_single(mine, [3, 3, 3, 3], [2, 2, 2, 2], group)
    assert torch.equal(more[:8], mine)
    assert torch.equal(more[8:], mine[:4])
    assert torch.equal(all_to_all_single(mine, [1, 1, 0, 1], [2, 2, 2, 2], group), mine[:3])
    nothing = all_to_all_single(mine[:0], [1, 1, 0, 1], [0, 0, 0, 0], group)
    assert torch.equal(nothing, torch.zeros(3, 3))


@given(
    st.sampled_from(sorted(CALLS)), st.integers(1, 500), st.floats(0, 1e-3), st.floats(1e6, 1e12), st.integers(0, 99)
)
def test_a_collective_takes_what_schedulers_are_told(
    device: Recorded, group: EmulatedLink, kind: str, rows: int, alpha: float, bandwidth: float, blocks: int
) -> None:
    mine = torch.zeros(RANKS * rows, 2)
    wire = Wire(alpha, bandwidth, blocks)
    group.wire = wire
    found = wait_tensor(CALLS[kind](mine, group))
    group.wire = None
    size = max(mine.nbytes, found.nbytes)
    profile = profile_of(load_profile("h100"), wire, RANKS)
    asked, seconds, taken = device.flown[-1]
    assert (asked, taken) == (kind, blocks)
    assert seconds == pytest.approx(collective_seconds(kind, size, RANKS, profile))
    assert wire.seconds(group.sent[-1]) == seconds


def test_a_launch_waits_for_nothing_and_a_wait_for_the_data() -> None:
    begun, go_on = threading.Event(), threading.Event()
    moved: list[str] = []

    def move(name: str) -> None:
        begun.set()
        assert go_on.wait(10)
        moved.append(name)

    device = Cpu()
    waits = [device.fly("all_to_all", lambda name=name: move(name), 0.05, 0) for name in ("one", "two")]
    assert begun.wait(10)
    assert moved == []
    go_on.set()
    start = time.perf_counter()
    waits[0]()
    assert moved[0] == "one"
    waits[1]()
    assert moved == ["one", "two"]
    assert time.perf_counter() - start >= 2 * 0.05  # one after the other


class Forgetful(Cpu):
    """Keeps nothing of a flight, as a stream does not."""

    def fly(self, kind: str, move: Callable[[], None], seconds: float, blocks: int) -> Any:
        return lambda: None


def test_buffers_in_flight_live_until_the_wait() -> None:
    sent = torch.ones(2)
    seen = weakref.ref(sent)
    work = EmulatedLink(0, 2, Forgetful()).allreduce([sent])
    del sent
    gc.collect()
    assert seen() is not None
    assert work.wait()
    gc.collect()
    assert seen() is None


@given(st.floats(1e-3, 1), st.lists(st.floats(1, 1e9), min_size=1, max_size=20), st.floats(0, 2e-5))
def test_the_bandwidth_makes_all_collectives_take_so_long(seconds: float, sent: list[float], alpha: float) -> None:
    wire = wire_of(seconds, sent, alpha)
    assert sum(map(wire.seconds, sent)) == pytest.approx(seconds)


def test_a_step_may_be_too_short_for_its_collectives() -> None:
    with pytest.raises(ValueError, match=r"2 collectives of at least 1e-05 s can't take 2e-05 s"):
        wire_of(2e-5, [1.0, 1.0], 1e-5)
    with pytest.raises(ValueError, match="0 collectives"):
        wire_of(1.0, [], 1e-5)
