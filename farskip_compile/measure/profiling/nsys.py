# SPDX-License-Identifier: Apache-2.0
"""The reader of profiles of Nsight Systems: the database that `nsys export --type sqlite` writes.

In:    the path of the database.
Out:   a `Trace` of each process that used a GPU, in the order of the GPUs.
Never: guesses ranks or process groups, neither of which is in the file, so that the wait for other ranks is not known;
       writes; runs what a file may bring with it (views, virtual tables, functions in its schema).

The schema is that of Nsight Systems' documentation ("SQLite Schema Reference" of its User Guide, 2021.5 to 2026.3).
Empty tables are not written, and older versions lack some columns. Times are nanoseconds since the start of the
session, whose time since the epoch is in TARGET_INFO_SESSION_START_TIME. A `globalTid` is a `globalPid` with a thread's
number in its lowest 24 bits; correlation ids count per process. NVTX_EVENTS has the name of a range as `text`, or, if
the name was registered, as `textId`; type 59 is a range of a thread, type 60 one that may end on another thread. NCCL
brings ranges of its own (`ncclAllReduce`), and PyTorch ranges named after operators on request
(`nsys profile --pytorch=autograd-nvtx`, or `torch.autograd.profiler.emit_nvtx`).
"""

from __future__ import annotations

import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from farskip_compile.base.json_files import shown
from farskip_compile.base.reading.files import open_file
from farskip_compile.measure.profiling import events
from farskip_compile.measure.profiling.chrome import LARGEST, LATEST, SQLITE, NotATraceError, TraceError, rank_of_file
from farskip_compile.measure.profiling.data import Trace
from farskip_compile.measure.profiling.launches import LaunchIds
from farskip_compile.measure.profiling.raw import RawEvents
from farskip_compile.passes.gc_pause import collector_paused
from farskip_compile.text_utils import amount, printable, shortened

SqlValue = int | float | str | bytes | None
LONGEST = 2**20
"""Most bytes of a name."""
AGAIN = "export the report again: nsys export --type sqlite"
KERNELS, COPIES, FILLS = (f"CUPTI_ACTIVITY_KIND_{kind}" for kind in ("KERNEL", "MEMCPY", "MEMSET"))
CALLS, GRAPHS = (f"CUPTI_ACTIVITY_KIND_{kind}" for kind in ("RUNTIME", "GRAPH_TRACE"))
RANGES, STRINGS = "NVTX_EVENTS", "StringIds"
SESSION, SYSTEM = "TARGET_INFO_SESSION_START_TIME", "TARGET_INFO_SYSTEM_ENV"
TABLES = (KERNELS, COPIES, FILLS, CALLS, GRAPHS, RANGES, STRINGS, SESSION, SYSTEM)
THREAD_BITS = 24
"""Bits of a `globalTid` that hold the thread's number; the number of the process stands above them."""
NUMBER = 2**THREAD_BITS - 1
COPY_KINDS = {1: "HtoD", 2: "DtoH", 8: "DtoD", 9: "HtoH", 10: "PtoP", 11: "HtoD", 12: "DtoH", 13: "DtoD"}
"""Values of ENUM_CUDA_MEMCPY_OPER, by the names that kineto uses; from 11 on unified memory."""
_AFTER_NAME = re.compile(r", (?:seq|op_id|input_op_ids|sizes) = .*", re.DOTALL)
"""The suffix that `emit_nvtx` appends to an operator's name (torch/csrc/profiler/util.cpp, getNvtxStr)."""


def read_database(path: Path, *, rank: int | None = None, largest: int = LARGEST) -> tuple[Trace, ...]:
    """Return the traces of all processes in the file.

    Args:
        path: the database.
        rank: the rank of the only process.
        largest: most bytes that the file may have.

    Raises:
        TraceError: the file is too large, shows no work on a GPU or CUDA graphs as a whole, or has several processes
            although `rank` is given.
        NotATraceError: the file is damaged, or not an export of Nsight Systems.
    """
    with database(path, TABLES, largest) as opened, collector_paused():
        if not opened.columns.keys() & {KERNELS, COPIES}:
            raise _nothing_to_read(opened)
        return _Export(opened).traces(rank)


def _nothing_to_read(opened: Database) -> TraceError:
    """Return the error that says why `opened` has no kernel and no copy."""
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
        self._raws: dict[int, RawEvents] = defaultdict(RawEvents)
        self._gpus: dict[int, int] = {}
        """The first GPU that each process uses."""
        self._tells_processes = all("globalPid" in opened.columns[t] for t in (KERNELS, COPIES) if t in opened.columns)

    def traces(self, rank: int | None) -> tuple[Trace, ...]:
        """Return the trace of each process, in the order of the GPUs."""
        file = self._file
        for (start,) in file.rows(SESSION, "utcEpochNs"):
            self._base = 0 if start is None else file.whole(start, SESSION)
        for key, value in file.rows(STRINGS, "id", "value", needs=("id", "value")):
            self._strings[file.whole(key, STRINGS)] = printable(str(value))
        host = "".join(str(value) for (value,) in file.rows(SYSTEM, "value", where="name = 'Hostname'"))
        self._calls()
        self._ranges()
        self._work()
        self._graphs()
        order = sorted(self._gpus, key=lambda process: (self._gpus[process], process))
        single = len(order) == 1
        if rank is not None and not single:
            raise TraceError(f"{file.path} is of {len(order)} processes, not of one rank", way_out="give no rank")
        return tuple(
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
                    ids = LaunchIds(f"GPU {gpu} stream {self._file.whole(stream or 0, table)}", span[0], key)
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

    def _span(self, start: SqlValue, end: SqlValue, table: str, raw: RawEvents) -> tuple[int, int] | None:
        """Return start and end since the epoch; count an event without an end as unfinished, and return None."""
        first = self._file.whole(start, table)
        last = first - 1 if end is None else self._file.whole(end, table)
        if last < first:
            raw.unfinished += 1
            return None
        return self._base + first, self._base + last

    def _string(self, key: SqlValue) -> str:
        return self._strings.get(key, "") if isinstance(key, int) else ""

    def _process(self, identity: SqlValue) -> int:
        """Return the process of a `globalPid` or `globalTid`; 0 for all if the file does not tell processes apart."""
        return self._file.whole(identity or 0, "globalPid") >> THREAD_BITS if self._tells_processes else 0

    def _thread(self, thread: SqlValue) -> str:
        number = self._file.whole(thread or 0, "globalTid")
        return f"{number >> THREAD_BITS & NUMBER}/{number & NUMBER}"


def is_database(path: Path) -> bool:
    """Return whether a file begins like an SQLite file; False if it can't be read, which its reader will report."""
    try:
        with open_file(path) as file:
            return file.read(len(SQLITE)) == SQLITE.encode()
    except OSError:
        return False


class Database:
    """An open database that others may have written; `columns` maps each of its tables to the names of its columns."""

    def __init__(self, connection: sqlite3.Connection, path: Path, tables: Sequence[str]) -> None:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST)
        connection.text_factory = lambda text: text.decode("utf-8", errors="replace")
        self.path = path
        self._connection = connection
        plain = {
            str(name)
            for name, sql in connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'")
            if not str(sql).upper().startswith("CREATE VIRTUAL")
        }
        self.columns: dict[str, set[str]] = {}
        for table in plain.intersection(tables):
            described = connection.execute(f'PRAGMA table_info("{table}")')
            self.columns[table] = {str(column[1]) for column in described}

    def rows(
        self, table: str, *columns: str, needs: Sequence[str] = (), where: str = "1"
    ) -> Iterator[tuple[SqlValue, ...]]:
        """Return the rows of a table: none if the table does not exist, None for a column that does not exist.

        Args:
            table: one of the tables that were named when the database was opened.
            *columns: names, or expressions with brackets.
            needs: columns without which the table is of no use.
            where: a condition of SQL, or more.
        """
        has = self.columns.get(table)
        if has is None:
            return
        if missing := [one for one in needs if one not in has]:
            raise NotATraceError(f"{self.path}: table {table} has no column {', '.join(missing)}", way_out=AGAIN)
        chosen = ", ".join(f'"{one}"' if one in has else one if "(" in one else "NULL" for one in columns)
        yield from self._connection.execute(f'SELECT {chosen} FROM "{table}" WHERE {where}')

    def whole(self, value: SqlValue, table: str) -> int:
        """Return `value`; raise a `NotATraceError` unless it is a whole number that may be a time, an id or a count."""
        if not isinstance(value, int) or not 0 <= value <= LATEST:
            raise NotATraceError(
                f"{self.path}: table {table} has {shortened(shown(value))} where a whole number belongs", way_out=AGAIN
            )
        return value


@contextmanager
def database(path: Path, tables: Sequence[str], largest: int) -> Iterator[Database]:
    """Open the database in `path`, which may have `largest` bytes, to read `tables`.

    Raises:
        TraceError: the file is larger, or can't be read.
        NotATraceError: the file is damaged.
    """
    try:
        if path.stat().st_size > largest:
            raise TraceError(
                f"can't read {path}: Has more than {largest:,} bytes",
                way_out="if you trust the file, raise the limit (farskip overlap --largest, read_trace(..., largest=))",
            )
        address = f"file:{quote(bytes(path.absolute()))}?mode=ro&immutable=1"  # no journal, no lock
        with closing(sqlite3.connect(address, uri=True)) as connection:
            yield Database(connection, path, tables)
    except OSError as error:
        raise TraceError(f"can't read {path}: {error.strerror}", way_out="give a file that can be read") from None
    except sqlite3.Error as error:
        raise NotATraceError(f"{path} is damaged, or cut off: {shortened(str(error))}", way_out=AGAIN) from None
