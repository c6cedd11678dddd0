# SPDX-License-Identifier: Apache-2.0
"""Recording of Chrome traces: a callable on the current rank, and several ranks merged into one file.

Contract: `record` runs the callable `warmup` times, and once under the profiler, with the settings that the overlap
report needs. Every rank must do the same, as always with collectives; nothing is communicated here. Each rank gets the
report of its own trace. For a report on all ranks, give `path`, read the files, and call `overlap` on all traces.

Fused CPU kernels of Inductor have no profiler event unless they were compiled to have one, as they are while `record`
runs, or inside `kernels_visible()`. Code that was compiled before stays as it was: compile inside, or pass
`recompile=True`. On a GPU all kernels have events anyway.

`merge_traces` writes one trace of several, so that Perfetto or chrome://tracing shows the ranks one below the other.
Each process or GPU of each rank is a process of the trace, named after its rank; a lane of its own shows when
communication was exposed. Times of events only change by the common origin, and no more than one rank is in memory. The
clocks of ranks on different hosts are taken as they are. `read_traces` and `farskip overlap` read merged traces, too.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile, supported_activities

from farskip_compile._compat.inductor import inductor_settings
from farskip_compile._compat.names import KERNEL_PROFILE
from farskip_compile.base.json_files import replacing
from farskip_compile.measure.profiling import events
from farskip_compile.measure.profiling.chrome import (
    LARGEST,
    MERGED_ABOUT,
    MERGED_RANKS,
    SCHEDULES,
    STRIDE,
    Document,
    NotATraceError,
    TraceError,
    about_process,
    from_document,
    load,
    span_of,
)
from farskip_compile.measure.profiling.data import CollectiveDevice, OverlapReport, Trace
from farskip_compile.measure.profiling.intervals import difference, union
from farskip_compile.measure.profiling.measure import overlap
from farskip_compile.measure.profiling.read import read_trace
from farskip_compile.records.schedule import last_schedules

EXPOSED_LANE = 2**31 - 2
"""Thread id of the lane of exposed communication; no Linux thread has one that high."""


def kernels_visible() -> AbstractContextManager[None]:
    """Compile fused CPU kernels with profiler events inside the `with` block, at about a microsecond per call."""
    return inductor_settings({KERNEL_PROFILE: True})


def record(
    fn: Callable[[], object],
    *,
    path: str | PathLike[str] | None = None,
    warmup: int = 1,
    recompile: bool = False,
    memory: bool = False,
) -> OverlapReport:
    """Profile one call of `fn` on this rank. What the scheduler expected of the graphs goes into the trace.

    Args:
        fn: a step that communicates, for example a forward and backward pass. It must wait for its own collectives.
        path: keep the Chrome trace in this file (`.json`, `.json.gz`). `{rank}` stands for the rank.
        warmup: calls before the one that is profiled, so that nothing compiles under the profiler.
        recompile: forget all code that this process has compiled (`torch.compiler.reset()`) first, so that it is
            compiled again with visible kernels.
        memory: keep allocations in the trace, too.

    Raises:
        NoCollectivesError: `fn` communicates nothing.
        TraceError: the trace can't be written.
    """
    if recompile:
        torch.compiler.reset()
    with kernels_visible(), tempfile.TemporaryDirectory() as folder:
        for _ in range(warmup):
            fn()
        _synchronize()
        with profile(activities=supported_activities(), profile_memory=memory) as prof:
            fn()
            _synchronize()
            prof.add_metadata_json(SCHEDULES, json.dumps([schedule.to_json() for schedule in last_schedules()]))
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        kept = Path(folder) / "trace.json" if path is None else Path(str(path).replace("{rank}", str(rank)))
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.open("a").close()  # the profiler reports a file that it can't open on its log only
            prof.export_chrome_trace(str(kept))
        except OSError as error:
            raise TraceError(
                f"can't write {kept}: {error.strerror}", way_out="give a path that can be written"
            ) from None
        return overlap(read_trace(kept))


def _synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def merge_traces(paths: Sequence[str | PathLike[str]], out: str | PathLike[str], *, largest: int = LARGEST) -> Path:
    """Merge Chrome traces of several ranks into one file, for Perfetto, and return its path.

    Args:
        paths: of the traces, one for each rank.
        out: the file that is written (`.json`, or `.json.gz`); none of `paths`.
        largest: bytes that each trace may have, unpacked.

    Raises:
        TraceError: a file can't be read or written, two are of one rank, or one is of a thousand processes.
        NotATraceError: as `read_trace`.
        TruncatedTraceError: as `read_trace`.
    """
    out = Path(out)
    if any(out.resolve() == Path(path).resolve() for path in paths):
        raise TraceError(f"{out} is one of the traces to merge", way_out="give another name for the merged trace")
    ranks: dict[int, str] = {}
    about: dict[str, Any] = {}
    try:
        writer = gzip.open if out.suffix == ".gz" else open
        with replacing(out) as temporary, writer(temporary, "wt", encoding="utf-8") as file:
            file.write('{"displayTimeUnit":"ms","traceEvents":[\n')
            origin: int | None = None
            is_first = True
            for place, path in enumerate(paths):
                document = load(Path(path), largest=largest)
                trace = from_document(document, str(path))
                rank = place if trace.rank is None else trace.rank
                if rank in ranks:
                    raise TraceError(f"{ranks[rank]} and {path} are both of rank {rank}", way_out="give one for each")
                ranks[rank], about[str(rank)] = str(path), about_process(document)
                base = document.get("baseTimeNanoseconds") or 0
                origin = base if origin is None else origin
                for event in _merged_events(document, trace, rank, shift=(base - origin) / 1000, base=base):
                    file.write(("" if is_first else ",\n") + _json_line(event, path))
                    is_first = False
            rest = {"baseTimeNanoseconds": origin or 0, MERGED_RANKS: sorted(ranks), MERGED_ABOUT: about}
            file.write(f"\n],{_json_line(rest, ', '.join(ranks.values()))[1:]}\n")
    except OSError as error:
        raise TraceError(f"can't write {out}: {error.strerror}", way_out="give a path that can be written") from None
    return out


def _json_line(event: dict[str, Any], path: object) -> str:
    try:
        return json.dumps(event, allow_nan=False)
    except ValueError:  # what is too large for a float was read as infinite, and JSON has no such number
        raise NotATraceError(f"{path} has a number that is not finite", way_out="export the trace again") from None


def _merged_events(document: Document, trace: Trace, rank: int, *, shift: float, base: int) -> Iterator[dict[str, Any]]:
    """Yield the events of one rank in the merged trace."""
    original = [event for event in document["traceEvents"] if isinstance(event, dict)]
    processes: dict[int, int] = {}
    lane_of_exposed = 0
    collectives = {(one.start, one.end) for one in trace.collectives}
    places = events.GPU_CATEGORIES if trace.device is CollectiveDevice.GPU else events.HOST_CATEGORIES
    for event in original:  # the profiler's own marks have no number, and the GPUs that it lists may be idle
        if event.get("ph") == "X" and isinstance(event.get("pid"), int):
            pid = processes.setdefault(event["pid"], rank * STRIDE + 1 + len(processes))
            if len(processes) >= STRIDE:
                raise TraceError(f"{trace.source} is of {STRIDE} processes", way_out="give one trace for each rank")
            if not lane_of_exposed and event.get("cat") in places and span_of(event, base) in collectives:
                lane_of_exposed = pid
    names: dict[int, str] = {}
    for event in original:
        if not isinstance(event.get("pid"), int) or event["pid"] not in processes:
            continue
        pid = processes[event["pid"]]
        if event.get("ph") == "M" and str(event.get("name")).startswith("process_"):
            if event["name"] == "process_labels":
                args = event.get("args")
                names[pid] = str(args.get("labels", "")) if isinstance(args, dict) else ""
            continue
        moved = {**event, "pid": pid}
        if isinstance(event.get("ts"), (int, float)):
            moved["ts"] = round(event["ts"] + shift, 3)
        if "id" in event:
            moved["id"] = f"{rank}:{event['id']}"
        yield moved
    for pid in processes.values():
        label = f"rank {rank} {names.get(pid, '')}".rstrip()
        yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": label}}
        yield {"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": pid}}
    if lane_of_exposed:
        yield from _exposed_lane(trace, lane_of_exposed, shift, base)


def _exposed_lane(trace: Trace, pid: int, shift: float, base: int) -> Iterator[dict[str, Any]]:
    spans = difference(union((one.start, one.end) for one in trace.collectives), trace.compute())
    if not spans:
        return
    common = {"pid": pid, "tid": EXPOSED_LANE}
    yield {"ph": "M", "name": "thread_name", **common, "args": {"name": "exposed communication"}}
    yield {"ph": "M", "name": "thread_sort_index", **common, "args": {"sort_index": -1}}
    for start, end in spans:
        times = {"ts": round((start - base) / 1000 + shift, 3), "dur": round((end - start) / 1000, 3)}
        yield {"ph": "X", "cat": "exposed", "name": "exposed", **common, **times}
