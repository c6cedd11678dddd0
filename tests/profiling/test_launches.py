# SPDX-License-Identifier: Apache-2.0
"""Which collective a kernel belongs to: each thing that says so, which of them is believed, and what says nothing."""

from __future__ import annotations

from typing import Any

import pytest

from farskip_compile.measure.profiling.data import CollectiveDevice
from tests.profiling.golden import EP, TP, call, collective, mark, operator
from tests.profiling.gpu_traces import GEMM, SEND_RECV, kernel
from tests.profiling.traces import Event, annotation, trace

COPY = "void at::native::elementwise_kernel<128, 4>(int)"
DTOD = "Memcpy DtoD (Device -> Device)"


def found(*events: Event) -> list[tuple[str, str | None]]:
    return [(one.kind, one.group) for one in trace(events).collectives]


def sends(**args: Any) -> Event:
    return kernel(SEND_RECV, 50, 60, 20, **args)


ALL_TO_ALL = collective("all_to_allv", EP)
INSIDE = [operator("c10d::alltoall_base_", 0, 20, 30), operator("aten::mm", 22, 28, 31)]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param([sends(**ALL_TO_ALL)], ("all_to_all", "3"), id="its own arguments"),
        pytest.param(
            [
                operator("record_param_comms", 1, 9, 31, **collective("gather", TP)),
                sends(**ALL_TO_ALL, **{"External id": 31}),
            ],
            ("all_to_all", "3"),
            id="its own arguments before its operator",
        ),
        pytest.param(
            [
                operator("record_param_comms", 1, 9, 31, **ALL_TO_ALL),
                *INSIDE,
                call(24, 7),
                sends(correlation=7, **{"External id": 31}),
            ],
            ("all_to_all", "3"),
            id="its operator before what is open at the call",
        ),
        pytest.param([*INSIDE, call(4, 7), sends(correlation=7)], ("all_to_all", None), id="what is open at the call"),
        pytest.param(
            [*INSIDE, operator("record_param_comms", 2, 9, 31), call(4, 7), sends(correlation=7)],
            ("all_to_all", None),
            id="a record without arguments leaves it to what is around",
        ),
        pytest.param(
            [annotation("nccl:scatter", 0, 20), call(4, 7), sends(correlation=7), mark("nccl:gather", 50, 60, 20)],
            ("scatter", None),
            id="what is open at the call before the mark",
        ),
        pytest.param([sends(), mark("nccl:recv 1<-0", 50, 60, 20)], ("recv", None), id="the mark on its stream"),
        pytest.param([sends(), mark("nccl:recv 1<-0", 50, 60, 21)], ("send_recv", None), id="a mark on another stream"),
        pytest.param([*INSIDE, call(24, 7), sends(correlation=7)], ("send_recv", None), id="another operator"),
        pytest.param([*INSIDE, call(4, 7, tid=2), sends(correlation=7)], ("send_recv", None), id="another thread"),
        pytest.param([*INSIDE, call(4, 7), sends(correlation=8)], ("send_recv", None), id="another call"),
        pytest.param(
            [*INSIDE, call(4, 7), sends(correlation=7, **EP)],
            ("all_to_all", "3"),
            id="group by arguments, name by the call",
        ),
        pytest.param(
            [annotation("nccl:coalesced", 0, 20), call(4, 7), sends(correlation=7)],
            ("batch_isend_irecv", None),
            id="coalesced sends and receives",
        ),
        pytest.param(
            [
                annotation("nccl:coalesced", 0, 20),
                call(4, 7),
                {**sends(correlation=7), "name": "ncclDevKernel_AllGather_RING"},
            ],
            ("all_gather", None),
            id="a name that says it is believed",
        ),
        pytest.param(
            [
                annotation("nccl:coalesced", 0, 20),
                call(4, 7),
                {**sends(correlation=7), "name": "ncclDevKernel_Generic_4"},
            ],
            ("coalesced", None),
            id="a name that does not say it, coalesced",
        ),
    ],
)
def test_what_is_believed(events: list[Event], expected: tuple[str, str | None]) -> None:
    assert found(*events) == [expected]


@pytest.mark.parametrize(
    ("around", "kinds"),
    [
        pytest.param(
            [operator("symm_mem::tile_reduce", 0, 20, 1)], ["tile_reduce"], id="an operator that communicates"
        ),
        pytest.param([annotation("ncclAllGather", 0, 20)], ["all_gather"], id="a function of NCCL"),
        pytest.param([operator("record_param_comms", 0, 20, 1, **ALL_TO_ALL)], ["all_to_all"], id="a record"),
        pytest.param([annotation("nccl:all_gather", 0, 20)], [], id="a title, which may last longer than its launch"),
        pytest.param(
            [operator("c10d::allgather_", 0, 20, 1), operator("aten::copy_", 2, 9, 2)],
            [],
            id="a copy inside of a launch",
        ),
        pytest.param([operator("vllm::moe_forward", 0, 20, 1)], [], id="an operator of others"),
        pytest.param([mark("nccl:all_gather", 50, 60, 20)], [], id="a mark on its stream"),
    ],
)
@pytest.mark.parametrize(("name", "category"), [(COPY, "kernel"), (DTOD, "gpu_memcpy")])
def test_work_whose_name_says_nothing(around: list[Event], kinds: list[str], name: str, category: str) -> None:
    """What launches it decides whether it communicates; all else is compute, or a copy."""
    one = {**kernel(name, 50, 60, 20, correlation=7), "cat": category}
    result = trace([*around, call(4, 7), one, kernel(GEMM, 0, 5)])
    assert [one.kind for one in result.collectives] == kinds
    rest = result.copies if category == "gpu_memcpy" else result.work
    assert (name in [one[2] for lane in rest.values() for one in lane]) == (not kinds)


def test_a_copy_alone_is_no_trace_of_a_gpu_program() -> None:
    """Without a kernel or a collective nothing says that the GPU matters."""
    assert trace([kernel(DTOD, 50, 60, 20)]).device is CollectiveDevice.CPU


def test_layers_and_moments_of_new_kinds() -> None:
    events = [
        annotation("layers.4.experts", 0, 30),
        operator("c10d::_allgather_base_", 2, 12, 1),
        operator("record_param_comms", 3, 11, 2, **collective("_allgather_base", EP)),
        call(5, 7),
        kernel("Memcpy PtoP (Device -> Device)", 50, 60, 20, correlation=7),
    ]
    (one,) = trace(events).collectives
    assert (one.kind, one.layer, one.loose, one.ranks) == ("all_gather_into_tensor", 4, True, tuple(range(8)))
    assert one.launched is not None
