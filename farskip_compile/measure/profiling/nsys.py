# SPDX-License-Identifier: Apache-2.0
"""Reads a profile of Nsight Systems: the database that `nsys export --type sqlite` writes.

In:    the path of the database.
Out:   a `Trace` of each process that used a GPU, in the order of their GPUs.
Never: guesses ranks or process groups, neither of which is in the file: no rank's wait for another is known.

The schema is that of Nsight Systems' documentation ("SQLite Schema Reference" of its User Guide, 2021.5 to 2026.3).
Tables are written only if there is something in them, and older versions lack some columns. Times are nanoseconds since
the start of the session, whose time since the epoch is in TARGET_INFO_SESSION_START_TIME. A `globalTid` is a
`globalPid` with a thread's number in its lowest 24 bits; correlation ids count for each process. NVTX_EVENTS has the
name of a range as `text` or, where it was registered, as `textId`; its type is 59 for a range of a thread, 60 for one
that may end on another. NCCL brings ranges of its own (`ncclAllReduce`), PyTorch does if it is asked
(`nsys profile --pytorch=autograd-nvtx`, or `torch.autograd.profiler.emit_nvtx`): named after operators.

Algorithm:
1. Read what all events share: the start of the session, and the strings.
2. Sort in calls and ranges, then kernels, copies and fills, by process.
3. Make a trace of each process that has work on a GPU.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from farskip_compile.measure.profiling import events
from farskip_compile.measure.profiling.chrome import LARGEST, NotATraceError, TraceError
from farskip_compile.measure.profiling.chrome_events import rank_of_file
from farskip_compile.measure.profiling.data import Trace
from farskip_compile.measure.profiling.database import AGAIN, Database, SqlValue, database
from farskip_compile.measure.profiling.launches import Ids
from farskip_compile.measure.profiling.raw import Raw
from farskip_compile.passes.gc_pause import collector_paused
from farskip_compile.text_utils import amount, printable, shortened

KERNELS, COPIES, FILLS = (f"CUPTI_ACTIVITY_KIND_{kind}" for kind in ("KERNEL", "MEMCPY", "MEMSET"))
CALLS, GRAPHS = (f"CUPTI_ACTIVITY_KIND_{kind}" for kind in ("RUNTIME", "GRAPH_TRACE"))
RANGES, STRINGS = "NVTX_EVENTS", "StringIds"
SESSION, SYSTEM = "TARGET_INFO_SESSION_START_TIME", "TARGET_INFO_SYSTEM_ENV"
TABLES = (KERNELS, COPIES, FILLS, CALLS, GRAPHS, RANGES, STRINGS, SESSION, SYSTEM)
NUMBER = 0xFFFFFF
"""Of a process or a thread, in its place."""
PLACE = 24
"""Bits of a thread's number, above which that of the process stands."""
COPY_KINDS = {1: "HtoD", 2: "DtoH", 8: "DtoD", 9: "HtoH", 10: "PtoP", 11: "HtoD", 12: "DtoH", 13: "DtoD"}
"""Of ENUM_CUDA_MEMCPY_OPER, called as kineto calls them; from 11 on those of unified memory."""
_AFTER_NAME = re.compile(r", (?:seq|op_id|input_op_ids|sizes) = .*", re.DOTALL)
"""What `emit_nvtx` appends to the name of an operator (torch/csrc/profiler/util.cpp, getNvtxStr)."""


def read_database(path: Path, *, rank: int | None = None, largest: int = LARGEST) -> tuple[Trace, ...]:
    """The traces of all processes in the file, which may have `largest` bytes.

    Raises:
        TraceError: it has more; it shows no work on a GPU, or whole CUDA graphs alone; `rank` is given for several.
        NotATraceError: it is damaged, or not what Nsight Systems exports.
    """
    with database(path, TABLES, largest) as opened, collector_paused():
        if not opened.columns.keys() & {KERNELS, COPIES}:
            raise _nothing(opened)
        return _Export(opened).traces(rank)


def _nothing(opened: Database) -> TraceError:
    if STRINGS not in opened.columns:
        return NotATraceError(f"{opened.path} is a database, but not one of Nsight Systems", way_out=AGAIN)
    if GRAPHS in opened.columns:
        return TraceError(
            f"{opened.path} shows CUDA graphs as a whole, and no kernel of them",
            way_out="profile with nsys profile --trace=cuda,nvtx --cuda-graph-trace=node",
        )
    return TraceError(f"{opened.path} shows no work on a GPU", way_out="profile with nsys profile --trace=cuda,nvtx")


class _Export:
    """The events of one database, by process."""

    def __init__(self, opened: Database) -> None:
        self._file = opened
        self._base = 0
        self._strings: dict[int, str] = {}
        self._raws: dict[int, Raw] = defaultdict(Raw)
        self._gpus: dict[int, int] = {}
        """Of each process the first GPU that it uses."""
        self._tells_processes = all("globalPid" in opened.columns[t] for t in (KERNELS, COPIES) if t in opened.columns)

    def traces(self, rank: int | None) -> tuple[Trace, ...]:
        """See the module's contract."""
        file = self._file
        for (start,) in file.rows(SESSION, "utcEpochNs"):  # 1
            self._base = 0 if start is None else file.whole(start, SESSION)
        for key, value in file.rows(STRINGS, "id", "value", needs=("id", "value")):
            self._strings[file.whole(key, STRINGS)] = printable(str(value))
        host = "".join(str(value) for (value,) in file.rows(SYSTEM, "value", where="name = 'Hostname'"))
        self._calls()  # 2
        self._ranges()
        self._work()
        self._graphs()
        order = sorted(self._gpus, key=lambda process: (self._gpus[process], process))
        single = len(order) == 1
        if rank is not None and not single:
            raise TraceError(f"{file.path} is of {len(order)} processes, not of one rank", way_out="give no rank")
        return tuple(  # 3
            self._raws[process].trace(
                source=str(file.path) if single else f"{file.path} (process {process & NUMBER})",
                rank=rank_of_file(str(file.path)) if rank is None and single else rank,
                world_size=None,
                groups=None,
                host=printable(shortened(host)),
            )
            for process in order
        )

    def _calls(self) -> None:
        columns = ("start", "globalTid", "correlationId")
        for start, thread, correlation in self._file.rows(CALLS, *columns, needs=("start",)):
            if correlation is not None:
                place = (self._thread(thread), self._base + self._file.whole(start, CALLS))
                self._raws[self._process(thread)].launches.calls[self._file.whole(correlation, CALLS)] = place

    def _ranges(self) -> None:
        columns = ("start", "end", "text", "textId", "globalTid")
        needs = ("start", "end", "eventType")
        for start, end, text, text_id, thread in self._file.rows(
            RANGES, *columns, needs=needs, where="eventType IN (59, 60)"
        ):
            raw = self._raws[self._process(thread)]
            name = _AFTER_NAME.sub("", printable(str(text)) if text else self._string(text_id))
            span = self._span(start, end, RANGES, raw)
            if name and span is not None:
                operator = name == events.LAUNCH_RECORD or events.role(name) is not events.EventRole.GLUE
                raw.add_host((*span, name), self._thread(thread), operator=operator)

    def _work(self) -> None:
        columns = ("start", "end", "deviceId", "streamId", "globalPid", "correlationId")
        for table, named_by in ((KERNELS, ("demangledName", "shortName")), (COPIES, ("copyKind",)), (FILLS, ())):
            for start, end, device, stream, process, correlation, *names in self._file.rows(
                table, *columns, *named_by, needs=("start", "end")
            ):
                raw, gpu = self._raws[self._process(process)], self._file.whole(device or 0, table)
                self._gpus[self._process(process)] = min(gpu, self._gpus.get(self._process(process), gpu))
                key = None if correlation is None else self._file.whole(correlation, table)
                if (span := self._span(start, end, table, raw)) is not None:
                    ids = Ids(f"GPU {gpu} stream {self._file.whole(stream or 0, table)}", span[0], key)
                    raw.gpu.append(((*span, self._name(table, names)), table != KERNELS, ids))

    def _graphs(self) -> None:
        for process, count in self._file.rows(GRAPHS, "globalPid", "count(*)", where="1 GROUP BY 1"):
            self._raws[self._process(process)].notes.append(
                f"{amount(self._file.whole(count, GRAPHS), 'run')} of CUDA graphs are in the profile as a whole: what "
                "their kernels computed or communicated is missing here. Profile with nsys profile "
                "--cuda-graph-trace=node."
            )

    def _name(self, table: str, names: list[SqlValue]) -> str:
        if table == KERNELS:
            return next((text for name in names if (text := self._string(name))), "kernel without a name")
        if table == FILLS:
            return "Memset (Device)"
        kind = COPY_KINDS.get(names[0]) if isinstance(names[0], int) else None
        return f"Memcpy {kind or 'unknown'}"

    def _span(self, start: SqlValue, end: SqlValue, table: str, raw: Raw) -> tuple[int, int] | None:
        """Since the epoch; None, and counted, if the event has no end."""
        first = self._file.whole(start, table)
        last = first - 1 if end is None else self._file.whole(end, table)
        if last < first:
            raw.unfinished += 1
            return None
        return self._base + first, self._base + last

    def _string(self, key: SqlValue) -> str:
        return self._strings.get(key, "") if isinstance(key, int) else ""

    def _process(self, identity: SqlValue) -> int:
        """Of a process or one of its threads; all are one where the file does not tell them apart."""
        return self._file.whole(identity or 0, "globalPid") >> PLACE if self._tells_processes else 0

    def _thread(self, thread: SqlValue) -> str:
        number = self._file.whole(thread or 0, "globalTid")
        return f"{number >> PLACE & NUMBER}/{number & NUMBER}"
