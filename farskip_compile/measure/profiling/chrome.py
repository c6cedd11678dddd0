# SPDX-License-Identifier: Apache-2.0
"""The reader of Chrome traces: JSON, or JSON in gzip, as `torch.profiler` exports it or `merge_traces` writes it.

In:    a file, or a document that `load` gave.
Out:   `load`: the document, whose `traceEvents` is a list. `from_document`: its `Trace`. `split_ranks`: the document of
       each rank of a merged trace, as the rank's own file had it.
Never: believes a file. Only regular files are read, up to a limit of bytes after unpacking (`base.reading`); a value of
       the wrong type, or a time that no clock shows, is a `NotATraceError`; names are made printable.

`NaN` and `Infinity` are read as `null`. If an object repeats a key, the last value counts. 200 MB take a few seconds.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any

from farskip_compile.base.json_files import shown
from farskip_compile.base.reading.files import TooLarge, read_unpacked
from farskip_compile.base.reading.strict_json import check_nesting
from farskip_compile.errors import FarSkipError
from farskip_compile.measure.profiling import events
from farskip_compile.measure.profiling.data import Trace
from farskip_compile.measure.profiling.estimated import announced
from farskip_compile.measure.profiling.gpu_names import kind_of
from farskip_compile.measure.profiling.intervals import Span
from farskip_compile.measure.profiling.launches import C10dRecord, LaunchIds
from farskip_compile.measure.profiling.raw import RawEvents
from farskip_compile.passes.gc_pause import collector_paused
from farskip_compile.text_utils import printable, shortened

Document = dict[str, Any]
SQLITE = "SQLite format 3\0"
"""The first bytes of an SQLite file."""
LATEST = 2**62
"""Nanoseconds since the epoch, in the year 2116: later than any time of a profile."""
LARGEST = 2**30
"""Default limit on the bytes of a trace, unpacked."""
MOST_RANKS = 2**20
MERGED_RANKS, MERGED_ABOUT = "farskipRanks", "farskipTraces"
"""Keys of a merged document: the list of ranks, and by rank (as text) the `KEPT` entries of the rank's trace."""
SCHEDULES = "farskip_schedules"
"""The key under which `record` stores the schedules of the profiled process."""
KEPT = ("distributedInfo", "host_name", SCHEDULES)
"""Entries about the process that a merged document keeps."""
STRIDE = 1000
"""Process ids per rank in a merged document: rank r owns the ids from r * STRIDE + 1."""
MOST_MERGED_RANKS = 2**16

_EXPORT = (
    "give a file that torch.profiler's export_chrome_trace wrote, or farskip_compile.measure.profiling.record, or "
    "`nsys export --type sqlite`"
)
_CUT_OFF = "let the process that writes it finish, and export the trace again"
_ONE_FILE_EACH = "give the traces that it was made of, one file for each rank"


class TraceError(FarSkipError):
    """A trace that can't be used: unreadable, or a second one of the same rank."""


class NotATraceError(TraceError):
    """A file that is neither a Chrome trace of `torch.profiler` nor an export of Nsight Systems."""


class TruncatedTraceError(TraceError):
    """A trace file that ends in the middle, such as that of a process killed while writing."""


class NoCollectivesError(TraceError):
    """A set of traces without a collective, so that there is no communication to report on."""


class RanksMissingError(TraceError):
    """A question about all ranks, asked of the traces of some of them."""


def load(path: Path, *, largest: int = LARGEST) -> Document:
    """Return the JSON document in `path`.

    Args:
        path: a file of JSON, plain or in gzip.
        largest: most bytes that the file may have, unpacked.

    Raises:
        TraceError: the file can't be read.
        NotATraceError: the file is not a Chrome trace.
        TruncatedTraceError: the file ends in the middle.
    """
    text = _text(path, largest)
    if text.startswith(SQLITE):
        raise NotATraceError(
            f"{path} is a database, not a Chrome trace",
            way_out="`farskip overlap` and read_trace read exports of Nsight Systems; merge Chrome traces alone",
        )
    try:
        with collector_paused():
            document = json.loads(text, strict=False, parse_constant=lambda _: None)
    except json.JSONDecodeError as error:
        whole = text.strip()
        cut_off = whole[:1] in ("{", "[") and whole[-1:] not in ("}", "]")
        if cut_off or error.pos >= len(text.rstrip()):
            raise TruncatedTraceError(f"{path} ends in the middle of the trace", way_out=_CUT_OFF) from None
        raise NotATraceError(f"{path} is not JSON: {error}", way_out=_EXPORT) from None
    except ValueError as error:  # an integer of thousands of digits
        raise NotATraceError(f"{path} has a number that no trace has: {error}", way_out=_EXPORT) from None
    if isinstance(document, list):  # the bare form of the format: events, and nothing about them
        document = {"traceEvents": document}
    if not isinstance(document, dict) or not isinstance(document.get("traceEvents"), list):
        raise NotATraceError(f"{path} holds JSON, but no traceEvents: it is not a Chrome trace", way_out=_EXPORT)
    return document


def _text(path: Path, largest: int) -> str:
    try:
        content = read_unpacked(path, largest)
        check_nesting(content)
    except EOFError:
        raise TruncatedTraceError(f"{path} ends in the middle of its gzip stream", way_out=_CUT_OFF) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise NotATraceError(f"{path} is a damaged gzip file: {error}", way_out=_EXPORT) from None
    except TooLarge as error:
        raise TraceError(
            f"can't read {path}: {error.strerror}",
            way_out="if you trust the file: unpack it (gzip -d), and raise the limit "
            "(farskip overlap --largest, read_trace(..., largest=))",
        ) from None
    except OSError as error:
        raise TraceError(
            f"can't read {path}: {error.strerror}", way_out="give the path of a file that can be read"
        ) from None
    except ValueError:
        raise NotATraceError(f"{path} is nested too deeply for a trace", way_out=_EXPORT) from None
    if not content.strip():
        raise TruncatedTraceError(f"{path} is empty", way_out=_CUT_OFF)
    return content.decode("utf-8", errors="replace")  # kernels may have any name; JSON itself is ASCII


def is_merged(document: Document) -> bool:
    """Return whether `merge_traces` wrote `document`."""
    return MERGED_RANKS in document


def about_process(document: Document) -> dict[str, Any]:
    """Return the entries of one rank's document that a merged document keeps."""
    return {key: document[key] for key in KEPT if key in document}


def split_ranks(document: Document, source: str) -> dict[int, Document]:
    """Return the document of each rank of a merged `document`, by rank.

    Raises:
        NotATraceError: the list of ranks is not one that `merge_traces` writes.
    """
    ranks, about = document[MERGED_RANKS], document.get(MERGED_ABOUT, {})
    fits = isinstance(ranks, list) and 0 < len(ranks) <= MOST_MERGED_RANKS and isinstance(about, dict)
    if not (fits and all(type(rank) is int and rank >= 0 for rank in ranks) and len({*ranks}) == len(ranks)):
        raise NotATraceError(f"{source} is of ranks that no run has: {shown(ranks)}", way_out=_ONE_FILE_EACH)
    if not all(isinstance(about.get(str(rank), {}), dict) for rank in ranks):
        raise NotATraceError(f"{source} says nothing readable about its ranks", way_out=_ONE_FILE_EACH)
    events_by_rank: defaultdict[int, list[Any]] = defaultdict(list)
    for event in document["traceEvents"]:
        pid = event.get("pid") if isinstance(event, dict) else None
        if type(pid) is int:
            events_by_rank[pid // STRIDE].append(event)
    found = {}
    for rank in sorted(ranks):
        found[rank] = {
            **about_process(about.get(str(rank), {})),
            "baseTimeNanoseconds": document.get("baseTimeNanoseconds"),
            "traceEvents": events_by_rank[rank],
        }
    return found


def from_document(document: Document, source: str, *, rank: int | None = None) -> Trace:
    """Return the trace in `document`.

    Args:
        document: as `load` gave it.
        source: where it is from, for messages.
        rank: the rank, if the document does not say.

    Raises:
        NotATraceError: an event is not one of a Chrome trace, or the document holds several ranks.
    """
    if is_merged(document):
        raise NotATraceError(
            f"{source} holds the traces of several ranks, already merged",
            way_out=_ONE_FILE_EACH,
        )
    raw = RawEvents()
    try:
        with collector_paused():
            base = whole(document.get("baseTimeNanoseconds") or 0, LATEST)
            for event in document["traceEvents"]:
                if event.get("ph") == "X":
                    _add(raw, event, base)
        return raw.trace(source=source, **_about(document, source, rank))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise NotATraceError(
            f"{source} has an event that torch.profiler does not write "
            f"({type(error).__name__}: {shortened(str(error))})",
            way_out="give a trace as export_chrome_trace wrote it",
        ) from None


def span_of(event: dict[str, Any], base: int) -> Span:
    """Return the start and end of a complete event, in nanoseconds since the epoch."""
    start = base + _nanoseconds(event["ts"])
    return start, start + _nanoseconds(event["dur"])


def rank_of_file(path: str) -> int | None:
    """Return the rank in a file's name: 3 for `rank3.json`, 12 for `step7_rank-12.sqlite`."""
    named = re.search(r"rank[_\-. ]?(\d{1,9})", Path(path).name, re.IGNORECASE)
    return whole(int(named[1]), MOST_RANKS) if named is not None else None


def whole(number: object, most: int) -> int:
    """Return `number`; raise a `ValueError` unless it is a whole number from 0 to `most`."""
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= most:
        raise ValueError(f"{shown(number)} is not a whole number up to {most}")
    return number


def label(value: object) -> str:
    """Return the name or the number of a process, thread, stream or group as printable text."""
    if not isinstance(value, (str, int)):
        raise ValueError(f"{shown(value)} is neither a name nor a number")
    return shortened(printable(str(value)))


def _about(document: Document, source: str, rank: int | None) -> dict[str, Any]:
    """Return the fields of `Trace` that describe the process."""
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


def _add(raw: RawEvents, event: dict[str, Any], base: int) -> None:
    """Sort the complete event (`"ph": "X"`) into `raw` by its category."""
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
        ids = LaunchIds(stream, start, _id(args, "correlation"), _id(args, "External id"), _record(args))
        raw.gpu.append(((start, end, name), category in events.COPY_CATEGORIES, ids))


def _id(args: dict[str, Any], key: str) -> int | None:
    found = args.get(key)
    return found if isinstance(found, int) else None


def _record(args: dict[str, Any]) -> C10dRecord | None:
    """Return the record of c10d in the arguments of an event; None if there is none."""
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
    """Return a time in microseconds as nanoseconds; raise a `ValueError` for a time that no clock shows."""
    if not isinstance(time, (int, float)) or not -LATEST <= time * 1000 <= LATEST:
        raise ValueError(f"{shown(time)} is not a time in microseconds")
    return round(time * 1000)


def _ranks(text: object) -> tuple[int, ...] | None:
    """Return the ranks of a group, `[0, 1, 2, 3]` or that as text; None for text that is cut short with dots."""
    if isinstance(text, (list, tuple)):
        return tuple(whole(rank, MOST_RANKS) for rank in text)
    if not isinstance(text, str) or "..." in text:
        return None
    found = tuple(whole(int(rank[:9]), MOST_RANKS) for rank in re.findall(r"\d+", text))
    return found or None
