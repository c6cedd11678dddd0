# SPDX-License-Identifier: Apache-2.0
"""What the overlap benchmark measures with: the group that sends nothing, generated code, profiles.

No step is timed here.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from overlap_bench.alone import Exchange, communication, imbalance, replay_group
from overlap_bench.inductor import CodeFacts, facts, flights, without_counters
from overlap_bench.profiled import peak_of
from overlap_bench.steps import compare, interleaved

from farskip_compile.measure.profiling import Trace
from farskip_compile.measure.profiling.data import Collective, CollectiveDevice

# Timing and comparing


def test_how_far_results_are_apart():
    wanted = {"a": torch.tensor([3.0, 4.0]), "b": torch.ones(2), "zero": torch.zeros(2)}
    found = compare({**wanted, "a": torch.tensor([3.0, 4.5])}, wanted)
    assert found == {"tensors": 3, "worst": "a", "error": pytest.approx(0.1)}
    assert compare({**wanted, "b": torch.tensor([1.0, math.nan])}, wanted)["worst"] == "b"
    assert compare({**wanted, "zero": torch.ones(2)}, wanted)["worst"] == "zero"
    with pytest.raises(AssertionError, match="only one of two variants has"):
        compare({"a": wanted["a"]}, wanted)


def test_variants_take_turns_in_a_changing_order(monkeypatch):
    monkeypatch.setattr(dist, "barrier", lambda: None)
    order = []
    seconds = interleaved({name: lambda name=name: order.append(name) for name in "abc"}, 4)
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 4, "b": 4, "c": 4}


# The group that sends nothing


@pytest.fixture
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_collectives_give_what_they_once_gave(one_rank, monkeypatch):
    """Forward and backward, also in compiled code; and nothing is sent any more."""
    import torch.distributed._functional_collectives as fc

    group = replay_group()
    x = torch.arange(8.0).view(4, 2).requires_grad_()

    def step(x):
        sent = fc.all_to_all_single(x * 2, [4], [4], group)
        return fc.all_reduce(sent, "sum", group) * 3

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)

    def run(one):
        x.grad = None
        y = one(x)
        y.sum().backward()
        return y.detach(), x.grad

    group.record()
    wanted = run(compiled)
    assert torch.equal(wanted[0], 6 * x)
    to_all, summed, *backward = group.exchanges
    assert to_all == Exchange("all_to_all", 8, 8, torch.float32, (4,), (4,), 2)
    assert summed == Exchange("all_reduce", 8, 8, torch.float32)
    assert len(backward) == 2
    monkeypatch.setattr(dist, "all_to_all_single", None)
    monkeypatch.setattr(dist, "all_reduce", None)
    for one in (compiled, step, compiled):
        group.rewind()
        found = run(one)
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1], wanted[1])
    assert len(group.exchanges) == 4
    assert replay_group().group_name != group.group_name


def test_communication_alone_repeats_the_exchanges(one_rank, monkeypatch):
    called = []
    monkeypatch.setattr(dist, "all_reduce", lambda sent: called.append(sent.numel()))
    monkeypatch.setattr(dist, "all_to_all_single", lambda *given: called.append(given))
    rows = Exchange("all_to_all", 8, 6, torch.float32, (1, 3), (2, 1), 2)
    equal = Exchange("all_to_all", 8, 8, torch.int64)
    communication([rows, Exchange("all_reduce", 5, 5, torch.float32), equal])()
    (received, sent, *splits), reduced, (_, counted, *none) = called
    assert (sent.shape, received.shape, splits) == ((4, 2), (3, 2), [[2, 1], [1, 3]])
    assert reduced == 5
    assert (counted.dtype, none) == (torch.int64, [None, None])


def test_bytes_that_leave_a_rank():
    assert Exchange("all_to_all", 8, 8, torch.float32).bytes_out(0, 4) == 6 * 4
    assert Exchange("all_to_all", 8, 6, torch.float32, (1, 3), (2, 1), 2).bytes_out(0, 2) == 3 * 2 * 4
    assert Exchange("all_reduce", 8, 8, torch.float32).bytes_out(1, 4) == 2 * 8 * 4 * 3 / 4


def test_imbalance_is_that_of_the_fullest_rank():
    def exchange(sent, received):
        return Exchange("all_to_all", 2 * sum(sent), 2 * sum(received), torch.float32, sent, received, 2)

    equal = Exchange("all_to_all", 8, 8, torch.int64)
    hot = [equal, exchange((4, 2), (4, 5)), exchange((4, 5), (4, 2))]  # its 6 tokens' rows, 9 for its experts
    cold = [equal, exchange((5, 1), (2, 1)), exchange((2, 1), (5, 1))]
    assert imbalance([hot, cold]) == imbalance([cold, hot]) == 1.5
    assert imbalance([[equal], [equal]]) == imbalance([[], []]) == 1.0


# Generated code

CODE = """
    buf0 = torch.ops._c10d_functional.all_to_all_single.default(buf9, [1], [1], '0')
    extern_kernels.mm(a, b, out=buf1)
    cpp_fused_add_0(buf1)
    buf2 = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(q, k, v)
    torch.ops._c10d_functional.wait_tensor.default(buf0)
    extern_kernels.bmm(a, b, out=buf3)
    torch.ops._c10d_functional.all_reduce_.default(buf3, 'sum', '0')
    torch.ops._c10d_functional.wait_tensor.default(buf3)
    buf4 = torch.ops._c10d_functional.all_reduce_.default(buf3, 'sum', '0')
    extern_kernels.mm(a, b, out=buf8)
    torch.ops._c10d_functional.wait_tensor.default(buf3)
    buf5 = torch.ops._c10d_functional.all_to_all_single.default(buf3, [1], [1], '0')
    buf7 = torch.ops.mkl._mkl_linear(buf5, w)
    extern_kernels.addmm(c, a, b, alpha=1, beta=1, out=buf6)
"""


def test_heavy_kernels_between_launch_and_wait():
    assert flights(CODE) == [2, 0, 1, 2]  # the last is never waited for
    assert facts([CODE, CODE]) == CodeFacts(collectives=8, covered=6, heavy=10)
    assert facts([]) == CodeFacts(0, 0, 0)


def test_kernels_are_called_after_what_was_fused_alone():
    name = "graph_3_cpp_fused_add_mul_17"
    code = f'torch::aot_inductor::RAIIAtenRecordFunctionHandle record_{name}_("{name}", nullptr);\nx = y_17;'
    clean = 'torch::aot_inductor::RAIIAtenRecordFunctionHandle record_kernel_("cpp_fused_add_mul", nullptr);\nx = y_17;'
    assert without_counters(code) == clean
    from farskip_compile.measure.profiling.events import is_fused_kernel

    assert is_fused_kernel("cpp_fused_add_mul")  # still counts as compute


# Profiles


def test_forward_and_backward_are_told_apart():
    from overlap_bench.profiled import figures_of

    trace = Trace(
        source="made up",
        rank=0,
        world_size=2,
        device=CollectiveDevice.CPU,
        collectives=(Collective("a", 0, 10 * 10**9, "gloo"), Collective("b", 20 * 10**9, 30 * 10**9, "gloo")),
        work={"thread 1": [(2 * 10**9, 8 * 10**9, "mm"), (25 * 10**9, 40 * 10**9, "mm")]},
    )
    # the other rank launched the first one a second later, and the second one when this rank computed already
    assert figures_of(trace, 15 * 10**9, [10**9, 27 * 10**9]) == {
        "communication": 20.0,
        "exposed": 4.0 + 5.0,
        "waiting": 1.0 + 5.0,
        "compute": 21.0,
        "forward": {"communication": 10.0, "exposed": 4.0, "waiting": 1.0},
        "backward": {"communication": 10.0, "exposed": 5.0, "waiting": 5.0},
    }
    assert "forward" not in figures_of(trace, None, [0, 20 * 10**9])


def test_the_profiler_shows_backward_and_memory(one_rank, tmp_path):
    """On real profiles, since their format is not ours."""
    from overlap_bench.profiled import backward_start, peak_memory
    from overlap_bench.steps import BACKWARD
    from torch.profiler import record_function

    from farskip_compile.measure.profiling import record
    from farskip_compile.measure.profiling.chrome import load

    weight = torch.ones(1000, requires_grad=True)

    def step():
        dist.all_reduce(torch.ones(4))
        loss = (weight * 2).sum()
        with record_function(BACKWARD):
            loss.backward()
        dist.all_reduce(weight.grad)

    path = tmp_path / "trace.json"
    (trace,) = record(step, path=path).traces
    start = backward_start(load(path))
    first, last = trace.collectives
    assert first.end < start < last.start

    def allocate():
        big = torch.zeros(10**6)  # 4 MB
        del big
        dist.all_reduce(torch.ones(4))
        return torch.zeros(10**5)

    assert 4 * 10**6 <= peak_memory(allocate) < 4.4 * 10**6


def test_waits_return_late_while_memory_is_profiled(one_rank, monkeypatch):
    """In a program of Inductor's, which is not compiled again for that."""
    import overlap_bench.profiled as profiled
    from torch._dynamo.utils import counters
    from torch.distributed._functional_collectives import all_reduce

    waited = []
    monkeypatch.setattr(profiled, "time", SimpleNamespace(sleep=waited.append))
    wait = torch.ops._c10d_functional.wait_tensor.default
    sent = torch.ones(4)
    step = torch.compile(lambda: all_reduce(sent + 1, "sum", dist.group.WORLD) * 2, fullgraph=True)
    torch.compiler.reset()
    assert torch.equal(step(), torch.full((4,), 4.0))
    compiled = counters["stats"]["unique_graphs"]
    profiled.peak_memory(step)
    assert waited == [profiled.LATE] * profiled.STEPS
    assert counters["stats"]["unique_graphs"] == compiled
    assert torch.ops._c10d_functional.wait_tensor.default is wait


def memory_events(*changes):
    """From (microseconds, address, bytes)."""
    return [
        {"name": "[memory]", "ts": at, "args": {"Addr": address, "Bytes": size, "Device Type": 0}}
        for at, address, size in changes
    ]


@pytest.mark.parametrize(
    ("changes", "flights", "peak"),
    [
        # freed where the profiler sees it
        ([(0, 0, 100), (1, 0, -100), (2, 200, 100)], [], 100),
        # what gloo has freed is gone when its collective is over: launched after the allocation, whatever ends before
        ([(0, 0, 100), (9, 500, 80)], [(1000, 8000)], 100),
        ([(0, 0, 100), (7, 500, 80)], [(1000, 8000)], 180),
        ([(3, 0, 100), (9, 500, 80)], [(1000, 4000), (5000, 10000)], 180),
        # at the latest when something else lies there
        ([(0, 0, 100), (3, 50, 100)], [(1000, 8000)], 100),
        ([(0, 0, 30), (3, 10, 100)], [], 100),
        # what no collective can have taken stays
        ([(0, 0, 100), (9, 500, 80)], [], 180),
        # what was there before
        ([(0, 900, -100), (1, 0, 150)], [], 50),
    ],
)
def test_peak_memory_knows_what_another_thread_has_freed(changes, flights, peak):
    assert peak_of(memory_events(*changes), flights) == peak
