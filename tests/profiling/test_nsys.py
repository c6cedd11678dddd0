# SPDX-License-Identifier: Apache-2.0
"""Profiles of Nsight Systems: what is reported is that of a Chrome trace; processes, versions; files that are none."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from farskip_compile.cli import app
from farskip_compile.measure.profiling import OverlapReport, TraceError, merge_traces, overlap, read_trace, read_traces
from farskip_compile.measure.profiling.chrome import NotATraceError, RanksMissingError
from farskip_compile.text_utils import UNPRINTABLE
from tests.profiling.gpu_traces import ALL_REDUCE, GEMM, random_gpu_events
from tests.profiling.nsys_files import NSYS, SCHEMA, Rows, gpu, nvtx, work, write_nsys
from tests.profiling.traces import trace
from tests.reading.malformed import EVIL, bounded, damaged

OTHER = 1 << 48 | 5000 << 24
KERNELS = "CUPTI_ACTIVITY_KIND_KERNEL"
ONE: Rows = {KERNELS: [work(GEMM, 0, 10), work(ALL_REDUCE, 5, 20, 24)]}


def run(*args: Any, columns: int = 80) -> Any:
    return CliRunner().invoke(app, ["overlap", *map(str, args)], env={"COLUMNS": str(columns)})


def refused(path: Path) -> TraceError:
    with pytest.raises(TraceError) as caught:
        read_traces(path)
    assert str(path) in caught.value.reason
    assert caught.value.way_out
    return caught.value


@pytest.mark.parametrize("seed", range(12))
def test_the_same_report_as_of_a_chrome_trace(seed: int, tmp_path: Path) -> None:
    events = random_gpu_events(seed)
    rows = [work(one["name"], one["ts"], one["ts"] + one["dur"], one["tid"]) for one in events]
    (expected,) = overlap(trace(events, 0)).ranks
    (found,) = overlap(read_trace(write_nsys(tmp_path / "rank0.sqlite", {KERNELS: rows}))).ranks
    assert found == expected


def test_a_launcher_with_several_ranks(tmp_path: Path) -> None:
    """Their order is that of their GPUs; ids of calls and streams are each process's own."""
    second = [{**one, "globalPid": OTHER, "deviceId": 0} for one in (work(GEMM, 0, 2), work(ALL_REDUCE, 5, 20, 24, 7))]
    first = [{**one, "deviceId": 1} for one in (work(GEMM, 0, 10), work(ALL_REDUCE, 5, 20, 24, 7))]
    launches = [
        {"start": 1000, "end": 1500, "globalTid": p | 1, "correlationId": 7} for p in (OTHER, 1 << 48 | 4000 << 24)
    ]
    ranges = [nvtx(0, 9, text="layer 3", globalTid=OTHER | 1)]
    rows = {KERNELS: first + second, "CUPTI_ACTIVITY_KIND_RUNTIME": launches, "NVTX_EVENTS": ranges}
    path = write_nsys(tmp_path / "node_rank5.sqlite", rows)
    report = overlap(read_traces(path))
    assert [(rank.rank, rank.exposed_ns) for rank in report.ranks] == [(0, 15_000), (1, 10_000)]
    assert [rank.collectives[0].layer for rank in report.ranks] == [3, None]
    assert [one.source for one in report.traces] == [f"{path} (process 5000)", f"{path} (process 4000)"]
    with pytest.raises(TraceError, match="holds the traces of 2 ranks"):
        read_trace(path)
    with pytest.raises(TraceError, match="is of 2 processes, not of one rank"):
        read_traces(path, rank=3)
    result = run(path, "--json")
    assert result.exit_code == 0
    assert '"exposed_ns": 15000' in result.stdout


def test_what_it_says_about_itself(tmp_path: Path) -> None:
    found = read_trace(write_nsys(tmp_path / "rank3.db", NSYS.rows))
    assert (found.rank, found.host, found.world_size, found.groups) == (3, "node7", None, None)
    assert found.collectives[0].start == NSYS.rows["TARGET_INFO_SESSION_START_TIME"][0]["utcEpochNs"] + 60_000
    assert read_trace(tmp_path / "rank3.db", rank=1).rank == 1
    both = [found, read_trace(write_nsys(tmp_path / "rank4.db", NSYS.rows))]
    with pytest.raises(RanksMissingError, match="which process groups there are"):
        overlap(both, subtract_peer_wait=True)


OPTIONAL = ["globalPid", "correlationId", "globalTid", "textId", "text", "shortName", "demangledName", "utcEpochNs"]
OPTIONAL += ["deviceId", "streamId", "copyKind", "domainId", "greenContextId", "graphNodeId"]


@pytest.mark.parametrize("column", OPTIONAL)
def test_a_version_without_a_column(column: str, tmp_path: Path) -> None:
    """What can be said is still said. A copy of unknown kind counts as one between GPUs."""
    report = overlap(read_trace(write_nsys(tmp_path / "old.sqlite", NSYS.rows, without=column)))
    assert report.total.communication_ns == 150_000
    kinds = {part.name: part.count for part in report.ranks[0].kinds}
    named = {"correlationId": 0, "globalTid": 0, "text": 1, "textId": 1}.get(column, 2)
    assert kinds.get("all_to_all", 0) == named


@pytest.mark.parametrize(
    ("table", "column"),
    [
        (table, column)
        for table, columns in SCHEMA.items()
        for column in ("start", "end")
        if f"{column}!" in columns.split()
    ]
    + [("NVTX_EVENTS", "eventType"), ("StringIds", "value")],
)
def test_a_table_without_what_it_is_for(table: str, column: str, tmp_path: Path) -> None:
    rows = {**NSYS.rows, "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": [gpu(0, 5)]}
    path = write_nsys(tmp_path / "profile.sqlite", rows)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f'ALTER TABLE {table} DROP COLUMN "{column}"')
    if table in ("CUPTI_ACTIVITY_KIND_GRAPH_TRACE",) or (table, column) == ("CUPTI_ACTIVITY_KIND_RUNTIME", "end"):
        assert read_trace(path).collectives  # that column is not read
    else:
        assert f"table {table} has no column {column}" in refused(path).reason


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        (KERNELS, "start", "soon"),
        (KERNELS, "end", 2**62 + 1),
        (KERNELS, "deviceId", -1),
        (KERNELS, "streamId", 1.5),
        (KERNELS, "correlationId", b"7"),
        ("CUPTI_ACTIVITY_KIND_MEMCPY", "globalPid", "4000, I think"),
        ("CUPTI_ACTIVITY_KIND_RUNTIME", "globalTid", EVIL),
        ("NVTX_EVENTS", "start", "x"),
        ("TARGET_INFO_SESSION_START_TIME", "utcEpochNs", "x"),
    ],
)
def test_values_of_the_wrong_type(table: str, column: str, value: Any, tmp_path: Path) -> None:
    rows = {**NSYS.rows, table: [{**NSYS.rows[table][0], column: value}, *NSYS.rows[table][1:]]}
    error = refused(write_nsys(tmp_path / "profile.sqlite", rows))
    assert isinstance(error, NotATraceError)
    assert "where a whole number belongs" in error.reason
    assert not UNPRINTABLE.search(error.reason)


def test_names_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    rows = {KERNELS: [work(f"{EVIL}<x>", 0, 10), work("ncclDevKernel_SendRecv", 5, 20, 24)], "NVTX_EVENTS": []}
    result = run(write_nsys(tmp_path / "profile.sqlite", rows), "--all", columns=120)
    assert result.exit_code == 0, result.output
    assert not UNPRINTABLE.search(result.output)


def test_whole_graphs_are_missing(tmp_path: Path) -> None:
    graphs = {"CUPTI_ACTIVITY_KIND_GRAPH_TRACE": [gpu(0, 5), gpu(6, 9)]}
    (note,) = overlap(read_trace(write_nsys(tmp_path / "some.sqlite", {**ONE, **graphs}))).notes
    assert note.startswith("2 runs of CUDA graphs are in the profile as a whole")
    error = refused(write_nsys(tmp_path / "alone.sqlite", graphs))
    assert "shows CUDA graphs as a whole" in error.reason
    assert "--cuda-graph-trace=node" in error.way_out


def test_a_profile_of_the_host_alone(tmp_path: Path) -> None:
    error = refused(write_nsys(tmp_path / "host.sqlite", {"NVTX_EVENTS": [nvtx(0, 9, text="layer 2")]}))
    assert "no work on a GPU" in error.reason
    assert "--trace=cuda" in error.way_out


def test_a_database_of_others(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE notes (text)")
        connection.commit()
    assert "not one of Nsight Systems" in refused(path).reason


@pytest.mark.parametrize("kind", ["view", "virtual"])
def test_what_a_file_brings_is_not_run(kind: str, tmp_path: Path) -> None:
    """A view that never ends in place of a table; a table of a module."""
    path = write_nsys(tmp_path / "profile.sqlite", {"NVTX_EVENTS": []})
    endless = (
        "WITH RECURSIVE more(start) AS (SELECT 1 UNION ALL SELECT start + 1 FROM more) SELECT start, 1 AS end FROM more"
    )
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            f"CREATE VIEW {KERNELS} AS {endless}"
            if kind == "view"
            else f"CREATE VIRTUAL TABLE {KERNELS} USING fts4(start, end, deviceId, streamId)"
        )
        connection.commit()
    assert "no work on a GPU" in bounded(lambda: read_traces(path)).reason


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("exports")
    write_nsys(made / "whole.sqlite", NSYS.rows)
    return made


@settings(max_examples=80)
@given(st.data())
def test_any_damage_is_noticed_or_changes_nothing_else(folder: Path, data: st.DataObject) -> None:
    path = folder / "damaged.sqlite"
    path.write_bytes(data.draw(damaged((folder / "whole.sqlite").read_bytes())))
    found = bounded(lambda: [overlap(one) for one in read_traces(path) if one.collectives])
    assert isinstance(found, TraceError) or all(isinstance(one, OverlapReport) for one in found)
    if isinstance(found, TraceError):
        assert not UNPRINTABLE.search(str(found))
        assert found.way_out


def test_cut_off(tmp_path: Path) -> None:
    path = write_nsys(tmp_path / "profile.sqlite", NSYS.rows)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "is damaged, or cut off" in refused(path).reason


def test_more_bytes_than_it_may_have(tmp_path: Path) -> None:
    path = write_nsys(tmp_path / "profile.sqlite", ONE)
    size = path.stat().st_size
    assert read_traces(path, largest=size)
    with pytest.raises(TraceError, match="Has more than"):
        read_traces(path, largest=size - 1)


@pytest.mark.parametrize("name", ["a b.sqlite", "50%?mode=rwc#x.db", "[x]\x1b[2J.json", "\udcff.sqlite"])
def test_nothing_is_written_whatever_the_name(name: str, tmp_path: Path) -> None:
    path = write_nsys(tmp_path / "profile.sqlite", ONE).rename(tmp_path / name)
    before = path.read_bytes(), path.stat().st_mtime_ns
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")  # whoever asked for a lock would wait
        assert overlap(read_trace(path)).total.exposed_ns == 10_000
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert [one.name for one in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("columns", [80, 120])
def test_the_command(columns: int, tmp_path: Path) -> None:
    path, page = write_nsys(tmp_path / "profile.sqlite", NSYS.rows), tmp_path / "page.html"
    result = run(path, "--all", "--html", page, columns=columns)
    assert result.exit_code == 0, result.output
    assert "50.0% of communication hidden: 75.0 us of 150 us exposed (GPU, rank 0)" in result.stdout
    table = [line for line in result.stdout.splitlines() if str(tmp_path) not in line]
    assert max(map(len, table)) <= columns
    assert "all_to_all" in page.read_text()


def test_only_chrome_traces_are_merged(tmp_path: Path) -> None:
    path = write_nsys(tmp_path / "profile.sqlite", ONE)
    with pytest.raises(NotATraceError, match="is a database, not a Chrome trace"):
        merge_traces([path], tmp_path / "merged.json")
    assert not (tmp_path / "merged.json").exists()
