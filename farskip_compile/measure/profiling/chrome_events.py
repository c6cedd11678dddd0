# SPDX-License-Identifier: Apache-2.0
"""The events of a Chrome trace of `torch.profiler`, as a `Trace`.

In:    a document that `chrome.load` gave.
Out:   a `Trace`.
Never: believes a trace that others may have written: a value of the wrong type, or a time that no clock shows, is a
       `NotATraceError`, and names are kept as they can be printed.

Algorithm:
1. Sort in each complete event (`"ph": "X"`) by its category.
2. Read what the document says about the process: rank, groups, schedules.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from farskip_compile.base.json_files import shown
from farskip_compile.measure.profiling import events
from farskip_compile.measure.profiling.chrome import LATEST, Document, NotATraceError
from farskip_compile.measure.profiling.data import Trace
from farskip_compile.measure.profiling.estimated import announced
from farskip_compile.measure.profiling.gpu_names import kind_of
from farskip_compile.measure.profiling.intervals import Span
from farskip_compile.measure.profiling.launches import C10dRecord, Ids
from farskip_compile.measure.profiling.merged import SCHEDULES, is_merged
from farskip_compile.measure.profiling.raw import Raw
from farskip_compile.passes.gc_pause import collector_paused
from farskip_compile.text_utils import printable, shortened

MOST_RANKS = 2**20


def from_document(document: Document, source: str, *, rank: int | None = None) -> Trace:
    """Read a trace that is already parsed.

    Raises:
        NotATraceError: its events are not those of a Chrome trace, or it holds several ranks.
    """
    if is_merged(document):
        raise NotATraceError(
            f"{source} holds the traces of several ranks, already merged",
            way_out="give the traces that it was made of, one file for each rank",
        )
    raw = Raw()
    try:
        with collector_paused():
            base = whole(document.get("baseTimeNanoseconds") or 0, LATEST)
            for event in document["traceEvents"]:  # 1
                if event.get("ph") == "X":
                    _add(raw, event, base)
        return raw.trace(source=source, **_about(document, source, rank))  # 2
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise NotATraceError(
            f"{source} has an event that torch.profiler does not write "
            f"({type(error).__name__}: {shortened(str(error))})",
            way_out="give a trace as export_chrome_trace wrote it",
        ) from None


def span_of(event: dict[str, Any], base: int) -> Span:
    """Start and end of a complete event, in nanoseconds since the epoch."""
    start = base + _nanoseconds(event["ts"])
    return start, start + _nanoseconds(event["dur"])


def rank_of_file(path: str) -> int | None:
    """The rank in a file's name: `rank3.json`, `step7_rank-12.sqlite`."""
    named = re.search(r"rank[_\-. ]?(\d{1,9})", Path(path).name, re.IGNORECASE)
    return whole(int(named[1]), MOST_RANKS) if named is not None else None


def whole(number: object, most: int) -> int:
    """`number`, or a `ValueError` if it is not a whole number from 0 to `most`."""
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= most:
        raise ValueError(f"{shown(number)} is not a whole number up to {most}")
    return number


def label(value: object) -> str:
    """The name or the number of a process, a thread, a stream or a group."""
    if not isinstance(value, (str, int)):
        raise ValueError(f"{shown(value)} is neither a name nor a number")
    return shortened(printable(str(value)))


def _about(document: Document, source: str, rank: int | None) -> dict[str, Any]:
    """What a trace says about the process."""
    info = document.get("distributedInfo") or {}
    found, size = info.get("rank"), info.get("world_size")
    if rank is None:
        rank = rank_of_file(source) if found is None else whole(found, MOST_RANKS)
    groups = [_ranks(group.get("ranks")) for group in info.get("pg_config") or () if isinstance(group, dict)]
    return {
        "rank": rank,
        "world_size": None if size is None else whole(size, MOST_RANKS),
        "groups": tuple(sorted({ranks for ranks in groups if ranks and len(ranks) > 1})),
        "schedules": announced(document.get(SCHEDULES)),
        "host": printable(str(document.get("host_name") or "")),
    }


def _add(raw: Raw, event: dict[str, Any], base: int) -> None:
    category, name = event.get("cat"), printable(event["name"])
    start, end = span_of(event, base)
    if end < start:
        raw.unfinished += 1
        return
    args = event.get("args", {})
    thread = f"{label(event['pid'])}/{label(event['tid'])}"
    if category in events.OPERATOR_CATEGORIES:
        record = _record(args) if name == events.LAUNCH_RECORD else None
        raw.add_host((start, end, name), thread, operator=True, external=_id(args, "External id"), record=record)
    elif category in events.ANNOTATION_CATEGORIES:
        raw.add_host((start, end, name), thread, operator=False)
    elif category in events.RUNTIME_CATEGORIES:
        if "correlation" in args:
            raw.launches.calls[args["correlation"]] = (thread, start)
    elif category in events.GPU_CATEGORIES or category in events.GPU_ANNOTATION_CATEGORIES:
        device, queue = label(args.get("device", event["pid"])), label(args.get("stream", event["tid"]))
        stream = f"GPU {device} stream {queue}"
        if category in events.GPU_ANNOTATION_CATEGORIES:
            raw.launches.add_mark((start, end, name), stream)
            return
        ids = Ids(stream, start, _id(args, "correlation"), _id(args, "External id"), _record(args))
        raw.gpu.append(((start, end, name), category in events.COPY_CATEGORIES, ids))


def _id(args: dict[str, Any], key: str) -> int | None:
    found = args.get(key)
    return found if isinstance(found, int) else None


def _record(args: dict[str, Any]) -> C10dRecord | None:
    """What c10d recorded, in the arguments of its record or of a kernel; None if that is nothing."""
    kind, group = args.get("Collective name"), args.get("Process Group Name")
    ranks = _ranks(args.get("Process Group Ranks"))
    if not kind and group is None and ranks is None:
        return None
    return C10dRecord(
        kind_of(label(kind)) if kind else None,
        None if group is None else label(group),
        label(args.get("Process Group Description") or "") or None,
        ranks,
    )


def _nanoseconds(time: object) -> int:
    """A time of an event, which is in microseconds; a `ValueError` if no clock shows it."""
    if not isinstance(time, (int, float)) or not -LATEST <= time * 1000 <= LATEST:
        raise ValueError(f"{shown(time)} is not a time in microseconds")
    return round(time * 1000)


def _ranks(text: object) -> tuple[int, ...] | None:
    """The ranks of a group as a kernel's arguments have them: `[0, 1, 2, 3]`, cut short with dots if they are many."""
    if isinstance(text, (list, tuple)):
        return tuple(whole(rank, MOST_RANKS) for rank in text)
    if not isinstance(text, str) or "..." in text:
        return None
    found = tuple(whole(int(rank[:9]), MOST_RANKS) for rank in re.findall(r"\d+", text))
    return found or None
