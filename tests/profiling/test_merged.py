# SPDX-License-Identifier: Apache-2.0
"""A merged trace is as good as those that it was made of: `read_traces` takes it apart, and reports come out alike."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from farskip_compile.measure.profiling import TraceError, merge_traces, overlap, overlap_page, read_trace, read_traces
from tests.profiling.gpu_traces import random_gpu_events
from tests.profiling.traces import BASE, OTHER_WORKER, SCHEDULE, annotation, gloo, op, write


def cpu(rank: int) -> list[dict[str, Any]]:
    return [
        annotation("layer 3", 0, 100),
        annotation("Torch-Compiled Region: 0/0", 0, 200),
        op("c10d::allreduce_", 0, 10),
        gloo("all_reduce", 10, 110.125 + rank),
        gloo("all_gather", 60, 140, OTHER_WORKER),
        op("aten::mm", 20, 60.5),
        op("_c10d_functional::wait_tensor", 90, 115),
    ]


def gpu(rank: int) -> list[dict[str, Any]]:
    return random_gpu_events(rank)


def written(folder: Path, make: Any, ranks: tuple[int, ...], late: int = 0) -> list[Path]:
    """A trace of each rank; the clock of rank r starts r * `late` nanoseconds later."""
    more = {"world_size": 8, "groups": [[0, 1], list(range(8))], "farskip_schedules": [SCHEDULE], "host_name": "here"}
    return [
        write(folder / f"rank{rank}.json", make(rank), rank, **more, baseTimeNanoseconds=BASE + rank * late)
        for rank in ranks
    ]


@pytest.mark.parametrize("late", [0, 1_000_000, 123_456_789_001])
@pytest.mark.parametrize("ranks", [(0, 1), (3,), (5, 2, 7)])
@pytest.mark.parametrize("make", [cpu, gpu])
@pytest.mark.parametrize("suffix", ["json", "json.gz"])
def test_reports_are_alike(tmp_path: Path, make: Any, ranks: tuple[int, ...], late: int, suffix: str) -> None:
    paths = written(tmp_path, make, ranks, late)
    found = read_traces(merge_traces(paths, tmp_path / f"all.{suffix}"))
    alone = [read_trace(path) for path in sorted(paths)]
    assert [one.rank for one in found] == sorted(ranks)
    assert [one.source for one in found] == [f"{tmp_path / 'all'}.{suffix} (rank {rank})" for rank in sorted(ranks)]
    assert [replace(one, source="") for one in found] == [replace(one, source="") for one in alone]
    report = overlap(found)
    assert report.to_json() == overlap(alone).to_json()
    assert report.estimates
    assert report.world_size == 8
    assert all(one.source in overlap_page(report) for one in found)


def test_of_several_ranks_read_trace_gives_none(tmp_path: Path) -> None:
    merged = merge_traces(written(tmp_path, cpu, (0, 1)), tmp_path / "all.json")
    with pytest.raises(TraceError, match="holds the traces of 2 ranks"):
        read_trace(merged)
    assert read_trace(merge_traces(written(tmp_path, cpu, (4,)), tmp_path / "one.json")).rank == 4


def test_traces_of_two_runs_are_not_one(tmp_path: Path) -> None:
    merged = merge_traces(written(tmp_path, cpu, (0, 1)), tmp_path / "all.json")
    with pytest.raises(TraceError, match="both of rank 0") as caught:
        overlap([*read_traces(merged), *read_traces(merged)])
    assert "the traces of one run" in caught.value.way_out


def test_a_merged_trace_is_not_merged_again(tmp_path: Path) -> None:
    merged = merge_traces(written(tmp_path, cpu, (0, 1)), tmp_path / "all.json")
    with pytest.raises(TraceError, match="already merged"):
        merge_traces([merged], tmp_path / "again.json")
    assert not (tmp_path / "again.json").exists()


def test_traces_that_know_no_rank_and_files_of_earlier_versions(tmp_path: Path) -> None:
    """Their place is their rank, as in a report; and where nothing is said about the processes, nothing is known."""
    paths = [write(tmp_path / f"{name}.json", cpu(0), None) for name in ("first", "second")]
    merged = merge_traces(paths, tmp_path / "all.json")
    assert [one.rank for one in read_traces(merged)] == [0, 1]
    document = json.loads(merged.read_text())
    del document["farskipTraces"]
    merged.write_text(json.dumps(document))
    found = read_traces(merged)
    assert [(one.rank, one.world_size) for one in found] == [(0, None), (1, None)]
    assert overlap(found).total.communication_ns == overlap([read_trace(path) for path in paths]).total.communication_ns
