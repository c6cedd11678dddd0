# SPDX-License-Identifier: Apache-2.0
"""No collective is in flight where a CUDA graph begins or ends, in any order of launches, waits and other kernels.

Kernels are stand-ins here: a letter for what each does. `tests/gpu/test_cuda_graphs.py` has real ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._inductor import config, ir

from farskip_compile._compat import cuda_graphs, inductor
from farskip_compile.compiler.inductor_passes.cuda_graphs import CudaGraphCapture, keep_flights_whole
from farskip_compile.errors import ConfigError
from farskip_compile.records.schedule import ScheduleReport

OPERATORS = {
    "L": torch.ops._c10d_functional.all_to_all_single.default,
    "W": torch.ops._c10d_functional.wait_tensor.default,
}


@dataclass(eq=False)
class Kernel:
    """L: launch, W: wait for `flight`, k: what can be captured, h: what can't."""

    kind: str
    flight: int = -1

    @property
    def scheduler(self) -> Any:
        return self

    def should_partition(self, kernel: Kernel) -> str | None:
        """As Inductor's: what can't be captured, and operators that were left out."""
        operator = OPERATORS.get(kernel.kind)
        left_out = operator is not None and operator.name() in config.custom_should_partition_ops
        return "some reason" if kernel.kind == "h" or left_out else None

    def get_nodes(self) -> list[Any]:
        node = mock.Mock(spec=ir.FallbackKernel, op_overload=OPERATORS.get(self.kind))
        return [SimpleNamespace(node=node)]


@contextlib.contextmanager
def compiling(**settings: Any) -> Iterator[None]:
    stand_ins = {
        "is_launch_kernel": lambda kernel: kernel.kind == "L",
        "is_wait_kernel": lambda kernel: kernel.kind == "W",
        "kernel_makes": lambda kernel: [f"{kernel.kind}{kernel.flight}"],
        "kernel_needs": lambda kernel: [f"L{kernel.flight}"] if kernel.kind == "W" else [],
        "kernel_name": lambda kernel: f"{kernel.kind}{kernel.flight}",
    }
    options = {
        "triton.cudagraphs": True,
        "graph_partition": True,
        "triton.reorder_for_reducing_graph_partitions": False,
        "custom_should_partition_ops": [],
    }
    with mock.patch.multiple(inductor, **stand_ins), config.patch({**options, **settings}):
        yield


@st.composite
def orders(draw: st.DrawFn) -> list[Kernel]:
    """Each wait after its launch; some flights come from an earlier graph, some are left to the next one."""
    kernels = [Kernel(kind) for kind in draw(st.lists(st.sampled_from("kkh"), max_size=12))]
    for flight in range(draw(st.integers(0, 4))):
        ends = draw(st.sampled_from(["LW", "LW", "LW", "L", "W"]))
        places = sorted(draw(st.tuples(*[st.integers(0, len(kernels))] * len(ends))))
        for kind, place in zip(reversed(ends), reversed(places), strict=True):
            kernels.insert(place, Kernel(kind, flight))
    return kernels


def captures(kernels: list[Kernel]) -> bool:
    """Whether CUDA would: a wait in a capture is for a launch in it, and nothing is in flight where it ends."""
    for left_out, run in groupby(kernels, lambda one: one.should_partition(one)):
        in_flight: set[int] = set()
        for kernel in () if left_out else run:
            if kernel.kind == "L":
                in_flight.add(kernel.flight)
            elif kernel.kind == "W":
                if kernel.flight not in in_flight:
                    return False
                in_flight.remove(kernel.flight)
        if in_flight:
            return False
    return True


@given(orders())
def test_no_flight_is_open_where_a_cuda_graph_begins_or_ends(kernels: list[Kernel]) -> None:
    with compiling():
        whole = captures(kernels)
        found = keep_flights_whole(kernels)
        assert captures(kernels)
        flights = [one for one in kernels if one.kind in "LW"]
        left_out = [one for one in flights if one.should_partition(one)]
        assert left_out == ([] if whole else flights)
        if flights:
            graphs = sum(not left_out for left_out, _ in groupby(kernels, lambda one: one.should_partition(one)))
            assert found == CudaGraphCapture(graphs, all(one.should_partition(one) for one in flights))
    assert config.custom_should_partition_ops == []


@pytest.mark.parametrize(("kinds", "right"), [("kLkWk", True), ("kLk", False), ("kWk", False)])
def test_where_all_or_nothing_is_captured_every_flight_must_begin_and_end_here(kinds: str, right: bool) -> None:
    kernels = [Kernel(kind, 0) for kind in kinds]
    with compiling(graph_partition=False):
        if right:
            assert keep_flights_whole(kernels) == CudaGraphCapture(1)
        else:
            with pytest.raises(ConfigError, match="graph_partition"):
                keep_flights_whole(kernels)


def test_nothing_is_left_out_without_cuda_graphs() -> None:
    with compiling(**{"triton.cudagraphs": False, "triton.reorder_for_reducing_graph_partitions": True}):
        assert keep_flights_whole([Kernel("L", 0), Kernel("h"), Kernel("W", 0)]) == CudaGraphCapture()
        assert config.custom_should_partition_ops == []


def test_an_order_that_inductor_makes_after_ours_is_refused() -> None:
    with compiling(**{"triton.reorder_for_reducing_graph_partitions": True}):
        assert keep_flights_whole([Kernel("k")]) == CudaGraphCapture(), "no collective: nothing of ours is undone"
        with config.patch(graph_partition=False):
            assert keep_flights_whole([Kernel("L", 0), Kernel("W", 0)]) == CudaGraphCapture(1), (
                "Inductor does not reorder"
            )
        with pytest.raises(ConfigError, match="reorder_for_reducing_graph_partitions"):
            keep_flights_whole([Kernel("L", 0), Kernel("W", 0)])


def test_the_options_of_a_compile_leave_the_order_to_us() -> None:
    options = inductor.scheduling_options({"custom_should_partition_ops": ["my::op"]}, None, lambda kernels: None, "x")
    assert options[cuda_graphs.FEWER_PARTS] is False
    assert options[cuda_graphs.LEFT_OUT] == ["my::op"]


def test_the_log_says_what_is_captured() -> None:
    report = ScheduleReport("forward", {"0": ["all_to_all_single"]}, cuda_graphs=2, outside_cuda_graphs=True)
    assert "1 process group, 2 CUDA graphs without collectives, " in report.summary()
    assert "2 CUDA graphs, " in replace(report, outside_cuda_graphs=False).summary()
    assert "CUDA" not in replace(report, cuda_graphs=0).summary()
