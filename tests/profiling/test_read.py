# SPDX-License-Identifier: Apache-2.0
"""What counts as compute, communication and waiting in a CPU trace; launches and layers; files that are no traces."""

from __future__ import annotations

import gzip
import json

import pytest

from farskip_compile.measure.profiling import TraceError, overlap, read_trace
from farskip_compile.measure.profiling.chrome import NotATraceError, TruncatedTraceError
from farskip_compile.measure.profiling.events import layer_of
from farskip_compile.measure.profiling.text import short_name
from tests.profiling.traces import (
    BASE,
    MAIN,
    OTHER_WORKER,
    WORKER,
    annotation,
    document,
    event,
    gloo,
    op,
    trace,
    write,
)

WAIT = "_c10d_functional::wait_tensor"


def compute(*events):
    """What of the main thread is compute, in microseconds since the start of the trace."""
    lanes = trace([*events, gloo("all_to_all", 0, 1)]).work
    return [
        ((start - BASE) // 1000, (end - BASE) // 1000, name) for lane in lanes.values() for start, end, name in lane
    ]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param(
            [op("aten::linear", 0, 50), op("aten::addmm", 10, 40)],
            [(0, 10, "aten::linear"), (10, 40, "aten::addmm"), (40, 50, "aten::linear")],
            id="the innermost operator has the time",
        ),
        pytest.param(
            [
                op("Torch-Compiled Region: 0/0", 0, 90),
                annotation("## Call CompiledFxGraph None ##", 1, 89),
                op("CompiledFunctionBackward", 2, 88),
                op("autograd::engine::evaluate_function: MmBackward0", 3, 87),
                op("torch::autograd::AccumulateGrad", 4, 10),
                op("TorchDynamo Cache Lookup", 11, 12),
                op("graph_0_cpp_fused_gelu_1", 20, 30),
                op("cpp_fused_add_2", 30, 35),
            ],
            [(20, 30, "graph_0_cpp_fused_gelu_1"), (30, 35, "cpp_fused_add_2")],
            id="glue around kernels is none",
        ),
        pytest.param(
            [
                op("_c10d_functional::all_reduce", 0, 20),
                op("aten::clone", 2, 8),
                op("c10d::allreduce_", 9, 19),
                op("record_param_comms", 10, 12),
                op(WAIT, 30, 60),
                op("aten::copy_", 50, 55),
                op("aten::mm", 60, 70),
            ],
            [(60, 70, "aten::mm")],
            id="what a launch or a wait does belongs to the collective",
        ),
        pytest.param(
            [op("aten::sum", 0, 100), op("PythonSubclass", 2, 98), op(WAIT, 10, 50), op("aten::sum", 60, 80)],
            [(60, 80, "aten::sum")],
            id="an asynchronous tensor waits inside of an operator",
        ),
        pytest.param(
            [op("aten::add", 0, 100), op("aten::mul", 10, 30), op(WAIT, 40, 50)],
            [(10, 30, "aten::mul")],
            id="an operator with a wait inside is only a frame",
        ),
        pytest.param(
            [op("aten::mm", 0, 100), op("aten::mm", 40, 60)],
            [(40, 60, "aten::mm")],
            id="a tensor subclass redispatches",
        ),
        pytest.param(
            [op("mylib::permute", 0, 10), op("mylib::moe", 20, 90), op("aten::mm", 30, 40)],
            [(0, 10, "mylib::permute"), (30, 40, "aten::mm")],
            id="foreign operators count if they run nothing visible",
        ),
        pytest.param(
            [op("aten::mm", 0, 10.001), op(WAIT, 10, 50), op("aten::mm", 50, 60)],
            [(0, 10, "aten::mm"), (50, 60, "aten::mm")],
            id="neighbours that touch by rounding are not nested",
        ),
    ],
)
def test_what_is_compute(events, expected):
    assert compute(*events) == expected


def test_operators_on_the_threads_of_gloo_are_a_part_of_its_work():
    events = [op("aten::copy_", 2, 8, WORKER), gloo("all_gather", 0, 10), op("aten::mm", 20, 30), op(WAIT, 0, 10)]
    (lane,) = trace(events).work.values()
    assert [name for _, _, name in lane] == ["aten::mm"]


def test_sends_run_on_the_thread_that_computes():
    events = [op("c10d::send", 0, 2), gloo("send", 1, 20, MAIN), op("aten::mm", 5, 15)]
    (rank,) = overlap(trace(events)).ranks
    assert (rank.communication_ns, rank.exposed_ns) == (19_000, 9_000)


def test_launches_by_order():
    events = [
        annotation("layers.0", 0, 10),
        op("c10d::_reduce_scatter_base_", 1, 3),
        annotation("decoder", 10, 80),
        annotation("layer 1", 12, 20),
        annotation("experts", 13, 19),
        op("c10d::allreduce_", 14, 16),
        op("c10d::alltoall_base_", 30, 31),
        annotation("layers 1-3", 40, 50),
        op("c10d::broadcast_", 41, 42),
        gloo("all_reduce", 20, 25, OTHER_WORKER),
        gloo("all_reduce", 4, 22),
        gloo("all_to_all", 32, 40),
        gloo("all_to_all", 45, 50),
        gloo("broadcast", 43, 44),
    ]
    found = {one.start - BASE: (one.kind, one.layer) for one in trace(events).collectives}
    assert found == {
        4_000: ("reduce_scatter_tensor", 0),  # gloo has no reduce-scatter
        20_000: ("all_reduce", 1),
        32_000: ("all_to_all", None),  # two works, one launch in the trace: nothing is known
        45_000: ("all_to_all", None),
        43_000: ("broadcast", None),  # a range of layers is no layer
    }


def test_no_launch_comes_after_its_work():
    (one,) = trace(
        [gloo("all_reduce", 4, 22), annotation("layer 1", 0, 40), op("c10d::allreduce_", 14, 16)]
    ).collectives
    assert (one.launched, one.layer) == (None, None)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("layer 3", 3),
        ("model.layers.12.mlp.experts", 12),
        ("Layer_7", 7),
        ("block[2] forward", 2),
        ("layers.3.experts.5", 3),
        ("layers 3-5", None),
        ("layer 1, layer 2", None),
        ("multilayer 3", None),
        ("ProfilerStep#4", None),
    ],
)
def test_layer_of_an_annotation(name, layer):
    assert layer_of(name) == layer


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("aten::mm", "mm"),
        ("graph_12_cpp_fused_add_gelu_1", "fused_add_gelu_1"),
        ("triton_poi_fused_gelu_1", "fused_gelu_1"),
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>(int)",
            "vectorized_elementwise_kernel",
        ),
        ("(anonymous)", "(anonymous)"),
    ],
)
def test_short_name(name, short):
    assert short_name(name) == short


def test_rank_world_and_notes(tmp_path):
    path = write(tmp_path / "trace.json", [gloo("all_reduce", 0, 5)], 3, world_size=8, groups=[range(8), [3], [2, 3]])
    found = read_trace(path)
    assert (found.rank, found.world_size) == (3, 8)
    assert found.groups == ((0, 1, 2, 3, 4, 5, 6, 7), (2, 3))
    assert read_trace(path, rank=5).rank == 5
    assert read_trace(write(tmp_path / "step7_rank12.json", [], None)).rank == 12
    assert read_trace(write(tmp_path / "step7.json", [], None)).rank is None
    for mark in (annotation, op):  # the profiler's choice depends on whether it records shapes
        compiled = [mark("## Call CompiledFxGraph None ##", 0, 9), gloo("all_reduce", 0, 5)]
        assert "enable_kernel_profile" in trace(compiled).notes[0]
    assert not trace([*compiled, op("graph_0_cpp_fused_add_0", 2, 4)]).notes
    assert trace([event("cpu_op", "aten::mm", 5, 4, MAIN)]).notes == ("1 event without an end left out.",)


def test_files_in_gzip_and_of_bare_events(tmp_path):
    zipped = tmp_path / "trace.json.gz"
    zipped.write_bytes(gzip.compress(json.dumps(document([gloo("all_reduce", 0, 5)])).encode()))
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps([gloo("all_reduce", 0, 5)]))
    assert read_trace(zipped).collectives[0].kind == read_trace(bare).collectives[0].kind == "all_reduce"


WHOLE = json.dumps(document([gloo("all_reduce", 0, 5), op("aten::mm", 0, 5)])).encode()


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (WHOLE[:-40], TruncatedTraceError, "ends in the middle of the trace"),
        (WHOLE[: WHOLE.index(b"}")] + b"}", TruncatedTraceError, "ends in the middle of the trace"),
        (gzip.compress(WHOLE)[:-20], TruncatedTraceError, "ends in the middle of its gzip stream"),
        (b" \n", TruncatedTraceError, "is empty"),
        (gzip.compress(WHOLE)[:60] + b"x" * 60, NotATraceError, "damaged gzip"),
        (b"rank 0: all good", NotATraceError, "is not JSON"),
        (b"\x7fELF\xff\xfe\x00", NotATraceError, "is not JSON"),
        (b'{"loss": 1.5}', NotATraceError, "no traceEvents"),
        (b'{"traceEvents": {}}', NotATraceError, "no traceEvents"),
        (b'{"traceEvents": ["mm"]}', NotATraceError, "that torch.profiler does not write"),
        (
            b'{"traceEvents": [{"ph": "X", "name": "mm"}]}',
            NotATraceError,
            "that torch.profiler does not write (KeyError",
        ),
        (b'{"traceEvents": [], "farskipRanks": [0, 1]}', TraceError, "holds the traces of 2 ranks"),
        (b'{"traceEvents": [], "farskipRanks": 2}', NotATraceError, "is of ranks that no run has"),
        (b"[" * 100_000, NotATraceError, "nested too deeply"),
    ],
)
def test_files_that_are_no_traces(content, error, says, tmp_path):
    path = tmp_path / "trace.json"
    path.write_bytes(content)
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert type(caught.value) is error
    assert says in caught.value.reason
    assert str(path) in caught.value.reason
    assert caught.value.way_out


def test_a_missing_file(tmp_path):
    with pytest.raises(TraceError, match=r"can't read .*No such file"):
        read_trace(tmp_path / "none.json")
