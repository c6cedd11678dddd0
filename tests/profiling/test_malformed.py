# SPDX-License-Identifier: Apache-2.0
"""Traces that others wrote or damaged: a report or a `TraceError`, soon."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farskip_compile.measure.profiling import (
    NoCollectivesError,
    OverlapReport,
    TraceError,
    merge_traces,
    overlap,
    overlap_page,
    read_trace,
)
from farskip_compile.measure.profiling.chrome import NotATraceError
from farskip_compile.measure.profiling.events import layer_of
from farskip_compile.measure.profiling.text import short_name
from farskip_compile.text_utils import UNPRINTABLE
from tests.profiling.traces import SCHEDULE, annotation, document, event, gloo, op, write
from tests.reading.malformed import EVIL, ODD, bomb, bounded, damaged, mutated, text

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
        ({"farskipRanks": [EVIL]}, "ranks that no run has"),
        ({"farskipRanks": [0, 0]}, "ranks that no run has"),
        ({"farskipRanks": []}, "ranks that no run has"),
        ({"farskipRanks": [True]}, "ranks that no run has"),
        ({"farskipRanks": [0], "farskipTraces": {"0": [EVIL]}}, "nothing readable about its ranks"),
        ({"farskipRanks": [0], "farskipTraces": [EVIL]}, "ranks that no run has"),
        ({"farskipRanks": [0], "farskipTraces": {"0": {"distributedInfo": [1]}}}, "AttributeError"),
        ({"farskipRanks": [0], "baseTimeNanoseconds": 1.5}, "is not a whole number"),
    ],
    ids=range(17),
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
