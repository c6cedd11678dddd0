# SPDX-License-Identifier: Apache-2.0
"""Constructed Chrome traces of CPU programs, as `torch.profiler` would write them. Times are in microseconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from farskip_compile.measure.profiling import Trace
from farskip_compile.measure.profiling.chrome import from_document

BASE = 1_790_857_026_000_000_000
HOST = 4242
"""Process id of the host."""
MAIN, WORKER, OTHER_WORKER = 1, 2, 3
"""Threads: the one that runs the model, and those of gloo."""

SCHEDULE = {
    "phase": "forward",
    "orders": {"0": ["all_reduce"]},
    "after": dict.fromkeys(("compute_seconds", "communication_seconds", "exposed_seconds", "seconds"), 1e-5),
    "profile": "h100",
}
"""What `record` puts into a trace about one graph."""

Event = dict[str, Any]


def event(cat: str, name: str, start: float, end: float, tid: int, **args: Any) -> Event:
    times = {"ts": start, "dur": round(end - start, 3)}
    return {"ph": "X", "cat": cat, "name": name, "pid": HOST, "tid": tid, **times, "args": args}


def op(name: str, start: float, end: float, tid: int = MAIN) -> Event:
    return event("cpu_op", name, start, end, tid)


def gloo(kind: str, start: float, end: float, tid: int = WORKER) -> Event:
    return event("user_annotation", f"gloo:{kind}", start, end, tid)


def annotation(name: str, start: float, end: float, tid: int = MAIN) -> Event:
    return event("user_annotation", name, start, end, tid)


def document(
    events: Sequence[Event],
    rank: int | None = 0,
    world_size: int = 1,
    groups: Sequence[Sequence[int]] = (),
    **more: Any,
) -> dict[str, Any]:
    config = [{"pg_name": str(i), "pg_size": len(ranks), "ranks": list(ranks)} for i, ranks in enumerate(groups)]
    info = {"backend": "gloo", "rank": rank, "world_size": world_size, "pg_config": config}
    known = {} if rank is None else {"distributedInfo": info}
    return {"schemaVersion": 1, **known, "baseTimeNanoseconds": BASE, **more, "traceEvents": list(events)}


def trace(events: Sequence[Event], rank: int | None = 0, **kwargs: Any) -> Trace:
    return from_document(document(events, rank, **kwargs), "constructed")


def write(path: Path, events: Sequence[Event], rank: int | None = 0, **kwargs: Any) -> Path:
    path.write_text(json.dumps(document(events, rank, **kwargs)))
    return path
