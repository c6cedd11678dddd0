"""Reads one rank's profile: a Chrome trace file, or a `torch.profiler` object.

In:    the path of an exported trace (`.json`, `.json.gz`), or a profile that has ended.
Out:   a `Trace`.
Never: changes the profile; keeps the raw events; believes a trace that others may have written: a value of the wrong
       type, or a time that no clock shows, is a `NotATraceError`, and names are kept as they can be printed.

What is compute and what is communication depends on the device:
- If the trace shows kernels of a GPU, collectives are the kernels of NCCL, RCCL or MSCCL, and compute is every other
  kernel on any stream. Copies and fills are kept apart. Collectives of CPU tensors (gloo) are left out, with a note.
- Otherwise collectives are the works of gloo, MPI or UCC, which run on threads of their own, and compute is what
  `lanes.compute_only` finds on all other threads. Operators that such a work runs itself are part of it.
"""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from operator import attrgetter
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from farskip_compile.json_files import shown
from farskip_compile.passes.gc_pause import collector_paused
from farskip_compile.profiling import events
from farskip_compile.profiling.chrome import LARGEST, Document, NotATraceError, TraceError, load
from farskip_compile.profiling.data import Collective, Device, Trace
from farskip_compile.profiling.estimated import announced
from farskip_compile.profiling.events import Role
from farskip_compile.profiling.intervals import Segment, Span, union
from farskip_compile.profiling.lanes import Launch, Layers, Place, compute_only, link_by_order, segments
from farskip_compile.text_utils import amount, printable, shortened

SCHEDULES = "farskip_schedules"
"""Where `record` puts the schedules of the process into a trace."""
LATEST = 2**62
"""Nanoseconds since the epoch, in the year 2116."""
MOST_RANKS = 2**20
_START = attrgetter("start", "end")


@runtime_checkable
class Profile(Protocol):
    """`torch.profiler.profile` and `torch.autograd.profiler.profile`."""

    def export_chrome_trace(self, path: str) -> Any:
        """Write the trace to `path`."""


Source = str | PathLike[str] | Profile


def read_trace(source: Source, *, rank: int | None = None, largest: int = LARGEST) -> Trace:
    """Read the profile of one rank.

    Args:
        source: a trace file, or a profile whose `with` block has ended and that was not exported before.
        rank: the rank, if the trace does not know it (profiles taken before `init_process_group`).
        largest: bytes that a file may have, unpacked.

    Raises:
        TraceError: the file can't be read, or the profile has nothing to export.
        NotATraceError: the file is not a Chrome trace, or holds several ranks.
        TruncatedTraceError: the file ends in the middle.
    """
    if isinstance(source, (str, PathLike)):
        path = Path(source)
        return from_document(load(path, largest=largest), str(path), rank=rank)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        try:
            source.export_chrome_trace(str(path))
        except (RuntimeError, AssertionError) as error:
            raise TraceError(
                f"the profile can't be exported: {error}",
                way_out="read it after its `with` block, and once; if it was exported before, read that file instead",
            ) from None
        return from_document(load(path, largest=largest), "profile", rank=rank)


def from_document(document: Document, source: str, *, rank: int | None = None) -> Trace:
    """Read a trace that is already parsed.

    Raises:
        NotATraceError: its events are not those of a Chrome trace, or it holds several ranks.
    """
    if "farskipRanks" in document:
        raise NotATraceError(
            f"{source} holds the traces of ranks {shown(document['farskipRanks'])}, merged for viewing",
            way_out="give the traces that it was made of, one file for each rank",
        )
    raw = _Raw()
    try:
        with collector_paused():
            base = _whole(document.get("baseTimeNanoseconds") or 0, LATEST)
            for event in document["traceEvents"]:
                if event.get("ph") == "X":
                    raw.add(event, base)
        return raw.trace(source=source, **_about(document, source, rank))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise NotATraceError(
            f"{source} has an event that torch.profiler does not write "
            f"({type(error).__name__}: {shortened(str(error))})",
            way_out="give a trace as export_chrome_trace wrote it",
        ) from None


def _about(document: Document, source: str, rank: int | None) -> dict[str, Any]:
    """What a trace says about the process."""
    info = document.get("distributedInfo") or {}
    found, size = info.get("rank"), info.get("world_size")
    if rank is None and found is None:
        named = re.search(r"rank[_\-. ]?(\d{1,9})", Path(source).name, re.IGNORECASE)
        found = int(named[1]) if named is not None else None
    groups = [_ranks(group.get("ranks")) for group in info.get("pg_config") or () if isinstance(group, dict)]
    return {
        "rank": rank if rank is not None else None if found is None else _whole(found, MOST_RANKS),
        "world_size": None if size is None else _whole(size, MOST_RANKS),
        "groups": tuple(sorted({ranks for ranks in groups if ranks and len(ranks) > 1})),
        "schedules": announced(document.get(SCHEDULES)),
        "host": printable(str(document.get("host_name") or "")),
    }


@dataclass
class _Raw:
    """The events of a trace, by what they are."""

    operators: dict[str, list[Segment]] = field(default_factory=lambda: defaultdict(list))
    ranges: dict[str, list[Segment]] = field(default_factory=lambda: defaultdict(list))
    kernels: dict[str, list[Segment]] = field(default_factory=lambda: defaultdict(list))
    copies: dict[str, list[Segment]] = field(default_factory=lambda: defaultdict(list))
    peer_copies: list[Span] = field(default_factory=list)
    gpu_collectives: list[tuple[Collective, int | None]] = field(default_factory=list)
    cpu_collectives: list[tuple[Collective, str]] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    runtime: dict[int, Place] = field(default_factory=dict)
    graphs: list[Segment] = field(default_factory=list)
    shows_fused_kernels: bool = False
    unfinished: int = 0

    def add(self, event: dict[str, Any], base: int) -> None:
        """Sort in one complete event (`"ph": "X"`)."""
        category, name = event.get("cat"), printable(event["name"])
        start = base + _nanoseconds(event["ts"])
        end = start + _nanoseconds(event["dur"])
        if end < start:
            self.unfinished += 1
            return
        thread = f"{_label(event['pid'])}/{_label(event['tid'])}"
        if category in events.OPERATOR_CATEGORIES or category in events.ANNOTATION_CATEGORIES:
            kind = events.cpu_collective(name)
            if kind is not None:
                self.cpu_collectives.append((Collective(kind, start, end, name.split(":")[0]), thread))
            elif category in events.ANNOTATION_CATEGORIES:
                self._add_region(name, start, end)  # an annotation, if shapes are recorded
                if events.layer_of(name) is not None:
                    self.ranges[thread].append((start, end, name))
            else:
                self._add_operator(name, start, end, thread)
        elif category in events.GPU_CATEGORIES:
            self._add_gpu(event, name, start, end)
        elif category in events.RUNTIME_CATEGORIES and "correlation" in event.get("args", {}):
            self.runtime[event["args"]["correlation"]] = (thread, start)

    def _add_operator(self, name: str, start: int, end: int, thread: str) -> None:
        if events.role(name) is Role.GLUE:
            self._add_region(name, start, end)
            return
        self.operators[thread].append((start, end, name))
        self.shows_fused_kernels |= events.is_fused_kernel(name)
        if (launched := events.launched_kind(name)) is not None:
            self.launches.append(Launch(*launched, (thread, start)))

    def _add_region(self, name: str, start: int, end: int) -> None:
        if name.startswith(events.COMPILED_REGION):
            self.graphs.append((start, end, name))

    def _add_gpu(self, event: dict[str, Any], name: str, start: int, end: int) -> None:
        args = event.get("args", {})
        device, queue = _label(args.get("device", event["pid"])), _label(args.get("stream", event["tid"]))
        stream = f"GPU {device} stream {queue}"
        if events.is_gpu_collective(name):
            group = args.get("Process Group Name")
            group = None if group is None else _label(group)
            kind = _label(args.get("Collective name") or events.gpu_kind(name))
            label = _label(args.get("Process Group Description") or group or "")
            lane = f"{label} ({stream})" if label else stream
            key = args.get("correlation")
            collective = Collective(kind, start, end, lane, group, _ranks(args.get("Process Group Ranks")))
            self.gpu_collectives.append((collective, key if isinstance(key, int) else None))
        elif events.is_peer_copy(name):
            self.peer_copies.append((start, end))
        elif event["cat"] in events.COPY_CATEGORIES:
            self.copies[stream].append((start, end, name))
        else:
            self.kernels[stream].append((start, end, name))

    def trace(self, **about: Any) -> Trace:
        """All of it, with launches and layers; the other fields of the trace are given."""
        layers = Layers(self.ranges)
        on_gpu = bool(self.kernels or self.gpu_collectives)
        if on_gpu:
            places = [(one, self.runtime.get(key) if key is not None else None) for one, key in self.gpu_collectives]
            collectives = sorted((layers.place(one, place) if place else one for one, place in places), key=_START)
        else:
            in_order = sorted((one for one, _ in self.cpu_collectives), key=_START)
            collectives = link_by_order(in_order, self.launches, layers)
        lanes = [] if on_gpu else self.operators.values()
        waits = ((start, end) for lane in lanes for start, end, name in lane if events.role(name) is Role.WAIT)
        return Trace(
            device=Device.GPU if on_gpu else Device.CPU,
            collectives=tuple(collectives),
            work=_by_lane(self.kernels) if on_gpu else self._cpu_work(),
            copies=_by_lane(self.copies) if on_gpu else {},
            waits=union(waits),
            graphs=sorted(self.graphs),
            notes=tuple(self._notes(on_gpu)),
            **about,
        )

    def _cpu_work(self) -> dict[str, list[Segment]]:
        """Compute of every thread but those that do nothing except the work of collectives."""
        communicating = (Role.LAUNCH, Role.WAIT)
        launching = {
            t for t, found in self.operators.items() if any(events.role(name) in communicating for _, _, name in found)
        }
        workers = {thread for _, thread in self.cpu_collectives} - launching
        lanes = ((t, compute_only(found)) for t, found in sorted(self.operators.items()) if t not in workers)
        return {f"thread {thread.split('/')[1]}": lane for thread, lane in lanes if lane}

    def _notes(self, on_gpu: bool) -> list[str]:
        notes = []
        if not on_gpu and self.graphs and not self.shows_fused_kernels:
            notes.append(
                "compiled code ran, but no fused kernel has an event: what these kernels hid is missing here. Compile "
                "with torch._inductor.config.cpp.enable_kernel_profile, as farskip_compile.profiling.record does."
            )
        if on_gpu and self.cpu_collectives:
            notes.append(f"{amount(len(self.cpu_collectives), 'collective')} of CPU tensors left out; the GPU's count.")
        if self.peer_copies:
            notes.append(f"Copies between GPUs ({len(self.peer_copies)}) count neither as collectives nor as compute.")
        if self.unfinished:
            notes.append(f"{self.unfinished} events have no end and are left out.")
        return notes


def _by_lane(found: dict[str, list[Segment]]) -> dict[str, list[Segment]]:
    return {stream: segments(kernels) for stream, kernels in sorted(found.items())}


def _nanoseconds(time: object) -> int:
    """A time of an event, which is in microseconds; a `ValueError` if no clock shows it."""
    if not isinstance(time, (int, float)) or not -LATEST <= time * 1000 <= LATEST:
        raise ValueError(f"{shown(time)} is not a time in microseconds")
    return round(time * 1000)


def _whole(number: object, most: int) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= most:
        raise ValueError(f"{shown(number)} is not a whole number up to {most}")
    return number


def _label(value: object) -> str:
    """The name or the number of a process, a thread, a stream or a group."""
    if not isinstance(value, (str, int)):
        raise ValueError(f"{shown(value)} is neither a name nor a number")
    return shortened(printable(str(value)))


def _ranks(text: object) -> tuple[int, ...] | None:
    """The ranks of a group as a kernel's arguments have them: `[0, 1, 2, 3]`, cut short with dots if they are many."""
    if isinstance(text, (list, tuple)):
        return tuple(_whole(rank, MOST_RANKS) for rank in text)
    if not isinstance(text, str) or "..." in text:
        return None
    found = tuple(_whole(int(rank[:9]), MOST_RANKS) for rank in re.findall(r"\d+", text))
    return found or None
