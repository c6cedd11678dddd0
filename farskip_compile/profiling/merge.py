"""Writes the traces of several ranks into one, so that Perfetto or chrome://tracing shows them one below the other.

In:    trace files, one for each rank.
Out:   one trace file. Each process or GPU of each rank is a process of the trace, named after its rank; a lane of its
       own shows when communication was exposed.
Never: changes the times of events, beyond bringing them to one origin; holds more than one rank in memory.

The clocks of ranks on different hosts are taken as they are.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import IO, Any

from farskip_compile.json_files import replacing
from farskip_compile.profiling import events
from farskip_compile.profiling.chrome import Document, TraceError, load
from farskip_compile.profiling.data import Device, Trace
from farskip_compile.profiling.intervals import difference, union
from farskip_compile.profiling.read import from_document

STRIDE = 1000
"""Processes that a rank may have: rank r owns the ids from r * STRIDE + 1."""
EXPOSED_LANE = 2**31 - 2
"""Thread id of the lane of exposed communication; no Linux thread has one that high."""


def merge_traces(paths: Sequence[str | PathLike[str]], out: str | PathLike[str]) -> Path:
    """Merge the traces in `paths` into the file `out` (`.json`, or `.json.gz`).

    Raises:
        TraceError: a file can't be read or written, or two are of one rank.
        NotATraceError, TruncatedTraceError: as `read_trace`.
    """
    out = Path(out)
    if any(out.resolve() == Path(path).resolve() for path in paths):
        raise TraceError(f"{out} is one of the traces to merge", way_out="give another name for the merged trace")
    ranks: dict[int, str] = {}
    try:
        with replacing(out) as temporary, _writer(temporary, zipped=out.suffix == ".gz") as file:
            file.write('{"displayTimeUnit":"ms","traceEvents":[\n')
            origin: int | None = None
            is_first = True
            for place, path in enumerate(paths):
                document = load(Path(path))
                trace = from_document(document, str(path))
                rank = place if trace.rank is None else trace.rank
                if rank in ranks:
                    raise TraceError(f"{ranks[rank]} and {path} are both of rank {rank}", way_out="give one for each")
                ranks[rank] = str(path)
                base = document.get("baseTimeNanoseconds") or 0
                origin = base if origin is None else origin
                for event in _events(document, trace, rank, shift=(base - origin) / 1000, base=base):
                    file.write(("" if is_first else ",\n") + json.dumps(event))
                    is_first = False
            file.write(f'\n],"baseTimeNanoseconds":{origin or 0},"farskipRanks":{sorted(ranks)}}}\n')
    except OSError as error:
        raise TraceError(f"can't write {out}: {error.strerror}", way_out="give a path that can be written") from None
    return out


def _writer(path: Path, *, zipped: bool) -> IO[str]:
    return gzip.open(path, "wt", encoding="utf-8") if zipped else path.open("w", encoding="utf-8")


def _events(document: Document, trace: Trace, rank: int, *, shift: float, base: int) -> Iterator[dict[str, Any]]:
    """The events of one rank in the merged trace."""
    original = [event for event in document["traceEvents"] if isinstance(event, dict)]
    processes: dict[int, int] = {}
    lane_of_exposed = 0
    on_gpu = trace.device is Device.GPU
    for event in original:  # the profiler's own marks have no number, and the GPUs that it lists may be idle
        if event.get("ph") == "X" and isinstance(event.get("pid"), int):
            pid = processes.setdefault(event["pid"], rank * STRIDE + 1 + len(processes))
            if not lane_of_exposed and events.is_collective(event.get("cat"), event["name"], on_gpu=on_gpu):
                lane_of_exposed = pid
    names: dict[int, str] = {}
    for event in original:
        if event.get("pid") not in processes:
            continue
        pid = processes[event["pid"]]
        if event.get("ph") == "M" and str(event.get("name")).startswith("process_"):
            if event["name"] == "process_labels":
                names[pid] = str(event.get("args", {}).get("labels", ""))
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
        yield from _exposed(trace, lane_of_exposed, shift, base)


def _exposed(trace: Trace, pid: int, shift: float, base: int) -> Iterator[dict[str, Any]]:
    spans = difference(union((one.start, one.end) for one in trace.collectives), trace.compute())
    if not spans:
        return
    common = {"pid": pid, "tid": EXPOSED_LANE}
    yield {"ph": "M", "name": "thread_name", **common, "args": {"name": "exposed communication"}}
    yield {"ph": "M", "name": "thread_sort_index", **common, "args": {"sort_index": -1}}
    for start, end in spans:
        times = {"ts": round((start - base) / 1000 + shift, 3), "dur": round((end - start) / 1000, 3)}
        yield {"ph": "X", "cat": "exposed", "name": "exposed", **common, **times}
