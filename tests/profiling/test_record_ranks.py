# SPDX-License-Identifier: Apache-2.0
"""Real profiles of two ranks with gloo, eager and compiled by Inductor."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch.profiler import profile, record_function

from farskip_compile.measure.profiling import (
    TraceError,
    merge_traces,
    overlap,
    overlap_page,
    read_trace,
    record,
)
from farskip_compile.measure.profiling.chrome import load
from tests.distributed.ranks import run_ranks

WIDTH = 256


def overlapped(x, weight):
    """Computes between a send or receive and its wait; then an exchange in the open.

    The work of a send begins in the call and ends in the wait, however the machine schedules gloo's threads.
    """
    with record_function("layer 0"):
        work = dist.isend(x, 1) if dist.get_rank() == 0 else dist.irecv(torch.empty_like(x), 0)
    y = torch.tanh(x @ weight)
    work.wait()
    with record_function("layer 1"):
        y = functional.wait_tensor(functional.all_to_all_single(y, None, None, dist.group.WORLD))
    return (y @ weight).sum()


def sequential(x, weight):
    gathered = functional.all_gather_tensor(torch.tanh(x @ weight), 0, dist.group.WORLD)
    return torch.sigmoid(functional.wait_tensor(gathered) * 2) @ weight


def profiles(rank, world_size, folder):
    torch.manual_seed(rank)
    x, weight = torch.randn(1024, WIDTH), torch.randn(WIDTH, WIDTH) / WIDTH**0.5
    eager = record(lambda: overlapped(x, weight), path=f"{folder}/eager{{rank}}.json")

    compiled = torch.compile(sequential, fullgraph=True)
    with torch.no_grad():
        compiled(x, weight)
        blind = record(lambda: compiled(x, weight))
        seeing = record(lambda: compiled(x, weight), recompile=True, path=f"{folder}/new/compiled{{rank}}.json.gz")

    with profile() as prof:
        overlapped(x, weight)
    held = overlap(read_trace(prof))
    errors = []
    for attempt in (
        lambda: read_trace(prof),
        lambda: record(lambda: x @ weight),
        lambda: record(lambda: overlapped(x, weight), path="/proc/none/x.json"),
    ):
        try:
            attempt()
        except TraceError as error:
            errors.append(str(error))
    return eager, blind, seeing, held, errors


def test_profiles_of_two_ranks(tmp_path):
    for rank, (eager, blind, seeing, held, errors) in enumerate(run_ranks(profiles, 2, str(tmp_path))):
        for report in (eager, held):
            (found,) = report.ranks
            assert (found.rank, report.world_size) == (rank, 2)
            transfer, exchange = found.collectives
            assert (transfer.kind, transfer.layer) == (("send", "recv")[rank], 0)
            assert (exchange.kind, exchange.layer) == ("all_to_all_single", 1)
            assert {"aten::mm", "aten::tanh"} <= {hider.name for hider in transfer.hidden_by}
            assert exchange.hidden_ns == 0
            assert 0 <= found.waiting_ns <= found.exposed_ns
        for report in (blind, seeing):
            (found,) = report.ranks
            assert [one.kind for one in found.collectives] == ["all_gather_into_tensor"]
            assert found.hidden_ns == 0, "Inductor waits right after the launch"
        names = {name for trace in seeing.traces for lane in trace.work.values() for _, _, name in lane}
        assert any("cpp_fused" in name and "tanh" in name for name in names)
        assert "aten::mm" in names
        assert not seeing.notes
        assert "no fused kernel has an event" in blind.notes[0]
        again, alone, nowhere = errors
        assert "can't be exported" in again
        assert "no collective" in alone
        assert "can't write /proc/none/x.json" in nowhere

    paths = [tmp_path / f"eager{rank}.json" for rank in (0, 1)]
    both = overlap([read_trace(path) for path in paths], subtract_peer_wait=True)
    assert both.peer_wait_subtracted
    waits = [[one.peer_wait_ns for one in rank.collectives] for rank in both.ranks]
    assert [wait[0] for wait in waits] == [None, None], "a send may be done before the receive begins"
    assert min(wait[1] for wait in waits) == 0, "some rank was the last"
    merged = load(merge_traces(paths, tmp_path / "merged.json"))
    assert {event["pid"] for event in merged["traceEvents"]} == {1, 1001}
    assert "tl-exposed" in overlap_page(both)
    assert (tmp_path / "new" / "compiled1.json.gz").read_bytes()[:2] == b"\x1f\x8b"
