"""Traces that others wrote or damaged: a report or a `TraceError`, soon; names are shown and not obeyed."""

from __future__ import annotations

import gzip
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from farskip_compile.cli import app
from farskip_compile.profiling import (
    NoCollectivesError,
    NotATraceError,
    OverlapReport,
    TraceError,
    merge_traces,
    overlap,
    overlap_page,
    read_trace,
    timeline_svg,
)
from farskip_compile.profiling.events import layer_of
from farskip_compile.profiling.text import short_name
from farskip_compile.text_utils import UNPRINTABLE
from tests.profiling.traces import annotation, document, event, gloo, op, write
from tests.reading.malformed import EVIL, ODD, bomb, bounded, damaged, mutated, text

SCHEDULE = {
    "phase": "forward",
    "orders": {"0": ["all_reduce"]},
    "after": dict.fromkeys(("compute_seconds", "communication_seconds", "exposed_seconds", "seconds"), 1e-5),
    "profile": "h100",
}
ABOUT = {"groups": [[0, 1]], "world_size": 2, "farskip_schedules": [SCHEDULE], "host_name": "a"}
CPU = document(
    [annotation("layer 1", 0, 40), op("c10d::allreduce_", 1, 2), gloo("all_reduce", 3, 40), op("aten::mm", 10, 20)],
    **ABOUT,
)
GROUP = {"Process Group Name": "0", "Process Group Description": "all", "Process Group Ranks": "[0, 1]"}
GPU = document(
    [
        event("kernel", "ncclDevKernel_AllReduce_Sum(x)", 3, 40, 7, device=0, stream=7, correlation=1, **GROUP),
        event("kernel", "void gemm<float>(int)", 10, 20, 8, device=0, stream=8, correlation=2),
        event("cuda_runtime", "cudaLaunchKernel", 1, 2, 1, correlation=1),
        event("cpu_op", "record_param_comms", 0, 3, 1, **{"External id": 5, "Collective name": "all_to_allv", **GROUP}),
        event("gpu_user_annotation", "nccl:all_to_all", 50, 60, 7, device=0, stream=7),
        event(
            "kernel", "ncclDevKernel_SendRecv(x)", 50, 60, 7, device=0, stream=7, correlation=3, **{"External id": 5}
        ),
        event("gpu_memcpy", "Memcpy PtoP (Device -> Device)", 70, 80, 9, device=0, stream=9, correlation=4),
    ],
    **ABOUT,
)


def everything(path: Path) -> Any:
    """All that is made of a trace; None without collectives."""
    try:
        report = overlap(read_trace(path))
    except NoCollectivesError:
        return None
    assert not UNPRINTABLE.search(json.dumps(report.to_json(), allow_nan=False, ensure_ascii=False))
    page = overlap_page(report)
    assert not UNPRINTABLE.search(page)
    assert "<script" not in page
    merged = merge_traces([path], path.with_name("merged.json"))
    json.loads(merged.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    return report


def outcome(content: bytes, folder: Path) -> Any:
    path = folder / "trace.json"
    path.write_bytes(content)
    found = bounded(lambda: everything(path))
    assert found is None or isinstance(found, OverlapReport | TraceError)
    if isinstance(found, TraceError):
        assert found.way_out
        assert not UNPRINTABLE.search(str(found))
        assert len(str(found)) < 2000
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traces")


@settings(max_examples=150)
@given(st.data())
def test_any_trace_is_reported_on_or_refused(folder: Path, data: st.DataObject) -> None:
    valid = data.draw(st.sampled_from([CPU, GPU]))
    outcome(text(data.draw(mutated(valid))), folder)


@settings(max_examples=60)
@given(st.data())
def test_any_damage_is_noticed_or_changes_nothing(folder: Path, data: st.DataObject) -> None:
    content = text(data.draw(st.sampled_from([CPU, GPU])))
    outcome(data.draw(damaged(gzip.compress(content) if data.draw(st.booleans()) else content)), folder)


@pytest.mark.parametrize("odd", [odd for odd in ODD if odd not in (True, False, 0, -1)], ids=range(len(ODD) - 4))
@pytest.mark.parametrize("key", ["ts", "dur"])
def test_a_time_that_no_clock_shows(key: str, odd: Any, folder: Path) -> None:
    if odd == 1e-320:
        return_is = OverlapReport  # nothing is wrong with it: less than a nanosecond
    else:
        return_is = NotATraceError
    events = [gloo("all_reduce", 0, 40), {**op("aten::mm", 10, 20), key: odd}]
    assert isinstance(outcome(text(document(events)), folder), return_is)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"baseTimeNanoseconds": 10**400}, "is not a whole number"),
        ({"baseTimeNanoseconds": 1.5}, "is not a whole number"),
        ({"distributedInfo": {"rank": 10**18}}, "is not a whole number"),
        ({"distributedInfo": {"rank": "0"}}, "is not a whole number"),
        ({"distributedInfo": {"rank": 0, "world_size": 10**18}}, "is not a whole number"),
        ({"distributedInfo": [1]}, "AttributeError"),
        ({"farskip_schedules": [{**SCHEDULE, "after": {}}]}, "KeyError"),
        ({"farskip_schedules": [{**SCHEDULE, "orders": {"0": 3}}]}, "orders are no lists"),
        ({"farskip_schedules": [{**SCHEDULE, "after": dict.fromkeys(SCHEDULE["after"], 1e308)}]}, "a schedule of"),
        ({"farskipRanks": [EVIL]}, "merged for viewing"),
    ],
    ids=range(10),
)
def test_what_a_trace_says_about_itself(change: dict[str, Any], says: str, folder: Path) -> None:
    found = outcome(text({**CPU, **change}), folder)
    assert isinstance(found, NotATraceError)
    assert says in found.reason


def test_operators_nested_beyond_reason(folder: Path) -> None:
    def nested(depth: int) -> list[dict[str, Any]]:
        return [op(f"aten::{place}", place, 20_000 - place) for place in range(depth)]

    assert isinstance(outcome(text(document([gloo("all_reduce", 0, 5), *nested(200)])), folder), OverlapReport)
    found = outcome(text(document([gloo("all_reduce", 0, 5), *nested(5000)])), folder)
    assert "operators are nested more than 256 deep" in found.reason


def test_many_collectives_at_once(folder: Path) -> None:
    events = [gloo("all_reduce", place, 10_000 + place) for place in range(2000)]
    assert isinstance(outcome(text(document([*events, op("aten::mm", 0, 5)])), folder), OverlapReport)


def test_a_missing_rank_of_a_million(folder: Path) -> None:
    traces = [read_trace(write(folder / "rank0.json", [gloo("all_reduce", 0, 5)], 0, world_size=2**20))]
    found = bounded(lambda: overlap(traces, subtract_peer_wait=True))
    assert found.reason.endswith("there is no trace of rank 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, ...")


@pytest.mark.parametrize("head", [b'{"traceEvents": [', b'{"traceEvents": []', b"["])
@pytest.mark.parametrize("filling", [b" ", b"{},", b"0"])
def test_a_small_file_that_unpacks_to_a_large_one(head: bytes, filling: bytes, folder: Path) -> None:
    found = outcome(bomb(head, filling, 2 * 2**30), folder)
    assert isinstance(found, TraceError)
    assert "Unpacks to more than 100 times its size" in found.reason
    assert "--largest" in found.way_out


def test_the_size_is_an_option_of_the_reader(tmp_path: Path) -> None:
    path = write(tmp_path / "trace.json", [gloo("all_reduce", 0, 5)])
    size = path.stat().st_size
    assert read_trace(path, largest=size).collectives
    for use in (
        lambda: read_trace(path, largest=size - 1),
        lambda: merge_traces([path], tmp_path / "out", largest=9),
    ):
        with pytest.raises(TraceError, match="Has more than"):
            use()


@pytest.mark.parametrize(
    "name",
    ["<" * 200_000 + ">" * 200_000, "(" * 200_000 + ")" * 200_000, "<(" * 200_000, "(<" * 100_000 + ">)" * 100_000],
    ids=["<>", "()", "<(", "(<>)"],
)
def test_a_short_name_takes_one_walk(name: str) -> None:
    bounded(lambda: short_name(name))


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("foo<(4>3)>(a<b)", "foo"),
        ("operator->", "operator->"),
        ("a<b", "a<b"),
        ("f(x<y)z", "fz"),
        ("<<>", "<"),
        ("())", ")"),
    ],
)
def test_brackets_without_a_partner(name: str, short: str) -> None:
    assert short_name(name) == short


def test_a_layer_has_a_number_of_some_digits() -> None:
    assert layer_of("layer 123456") == 123456
    assert layer_of("layer " + "1" * 5000) is None


# The command


def run(*args: Any, columns: int = 80) -> Any:
    return CliRunner().invoke(app, ["overlap", *map(str, args)], env={"COLUMNS": str(columns)})


EVIL_GROUP = {"Process Group Name": EVIL, "Process Group Description": EVIL, "Collective name": EVIL}
FILE = "[/x]\x1b[2J[red]<b>\udcff.json"
"""A folder and a file, as a file system takes them."""


def place(folder: Path, head: str = "") -> Path:
    path = folder / f"{head}{FILE}"
    path.parent.mkdir(exist_ok=True)
    return path


@pytest.mark.parametrize("columns", [80, 120])
def test_names_reach_neither_terminal_nor_page_unescaped(tmp_path: Path, columns: int) -> None:
    ncclish = event("kernel", f"ncclDevKernel_AllReduce({EVIL})", 3, 40, 7, device=EVIL, stream=EVIL, **EVIL_GROUP)
    kernel = event("kernel", EVIL, 10, 20, 8, device=0, stream=8)
    schedule = {**SCHEDULE, "phase": EVIL, "profile": EVIL}
    trace = place(tmp_path)
    trace.write_bytes(text(document([ncclish, kernel], host_name=EVIL, farskip_schedules=[schedule])))
    page, merged = place(tmp_path, "page"), place(tmp_path, "merged")
    result = run(trace, "--html", page, "--merge", merged, "--all", columns=columns)
    assert result.exit_code == 0, result.output
    assert not UNPRINTABLE.search(result.output)
    assert "\\x1b[2J" in "".join(result.stdout.split())
    assert "[/x]" in result.stdout
    assert result.stdout.count(" 37.0 us ") >= 3  # numbers have their room beside any name
    table = [line for line in result.stdout.splitlines() if str(tmp_path) not in line]
    assert max(map(len, table)) <= columns
    written = page.read_bytes().decode()
    assert not UNPRINTABLE.search(written)
    assert "<script" not in written
    assert "&lt;script&gt;" in written
    assert json.loads(merged.read_text())["farskipRanks"] == [0]
    as_json = run(trace, "--json")
    assert not UNPRINTABLE.search(as_json.stdout)
    assert not UNPRINTABLE.search(json.dumps(json.loads(as_json.stdout), ensure_ascii=False))  # names are kept so
    assert json.loads(as_json.stdout)["ranks"][0]["communication_ns"] == 37_000


@pytest.mark.parametrize("columns", [80, 120])
def test_names_of_cpu_traces(tmp_path: Path, columns: int) -> None:
    events = [gloo("all_reduce", 0, 40), op(f"aten::{EVIL}", 5, 9), op(f"mylib::{'k' * 300}[/x]", 10, 20)]
    path = write(place(tmp_path), [*events, op("graph_0_cpp_fused_[/x]", 20, 30)])
    result = run(path, columns=columns)
    assert result.exit_code == 0, result.output
    assert not UNPRINTABLE.search(result.output)
    assert max(map(len, result.stdout.splitlines())) <= columns


@pytest.mark.parametrize(
    "content",
    [b"{", b'{"traceEvents": [3]}', bomb(b"[", b"0", 2**28), b'{"traceEvents": [], "farskipRanks": "\\u001b"}'],
)
def test_errors_about_files_with_such_names(content: bytes, tmp_path: Path) -> None:
    path = place(tmp_path)
    path.write_bytes(content)
    result = run(path)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert not UNPRINTABLE.search(result.output)
    assert max(map(len, result.stderr.splitlines())) <= 80
    missing = run(tmp_path / f"{FILE}.gone", "--html", tmp_path / FILE / "page.html")
    assert missing.exit_code == 2
    assert not UNPRINTABLE.search(missing.output)


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "trace.json")
    before = time.monotonic()
    result = run(tmp_path / "trace.json", columns=200)
    assert time.monotonic() - before < 10
    assert result.exit_code == 2
    assert "Not a regular file" in result.stderr


@pytest.mark.parametrize("largest", ["0", "-1", "nan", "inf", "1e9"])
def test_a_limit_that_is_none(largest: str, tmp_path: Path) -> None:
    result = run(write(tmp_path / "trace.json", [gloo("all_reduce", 0, 5)]), "--largest", largest)
    assert result.exit_code == 2
    assert "--largest" in result.stderr


def test_a_number_too_large_for_json_is_not_merged(tmp_path: Path) -> None:
    path = write(tmp_path / "trace.json", [gloo("all_reduce", 0, 5)])
    path.write_text(path.read_text().replace('"dur":', '"more": 1e999, "dur":'))
    assert "1e999" in path.read_text()
    with pytest.raises(TraceError, match="not finite"):
        merge_traces([path], tmp_path / "merged.json")


def test_a_title_of_a_timeline_is_text(tmp_path: Path) -> None:
    report = overlap(read_trace(write(tmp_path / "trace.json", [gloo("all_reduce", 0, 5), op("aten::mm", 0, 5)])))
    drawn = timeline_svg(report, title=EVIL)
    assert not UNPRINTABLE.search(drawn)
    assert "<script" not in drawn
