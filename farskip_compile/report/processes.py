# SPDX-License-Identifier: Apache-2.0
"""The files that processes leave in FARSKIP_STATUS_DIR: what is in them, and what they say together.

In:    the folder.
Out:   `Found`: the processes, whether each is alive and runs rewired, and in what ranks of one job differ.
Never: asks a process anything; takes what it can't tell for a yes.

Of several processes with one rank in one job, those that are alive count, or else the one that wrote last: the others
were restarted.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from farskip_compile.errors import ConfigError
from farskip_compile.json_files import Reader, encode
from farskip_compile.reading import parse_json, read_bytes
from farskip_compile.text_utils import amount

VARIABLE = "FARSKIP_STATUS_DIR"
SCHEMA = 1
SUFFIX = ".jsonl"
REWIRED = ("rewired", "already in the form asked for")
REFUSED = "refused, compiled unchanged"
SILENT = ("no residual stack", "not a whole residual stack, unchanged as asked")
"""Values of `Outcome`."""

Answer = Literal["rewired", "NOT REWIRED", "unknown"]


@dataclass(frozen=True)
class Hidden:
    """An `Overlap`."""

    phase: str
    communication_seconds: float
    exposed_seconds: float
    profile: str
    hidden: float | None = None


@dataclass(frozen=True)
class Compiled:
    """A graph, or a model whose layers are compiled one by one (`layers`), whose graphs are the `part`s."""

    kind: Literal["graph", "part", "layers"]
    model: str
    outcome: str
    rows_rewired: int
    rows: int
    left_out: tuple[str, ...]
    overlap: tuple[Hidden, ...]
    reason: str
    compile_id: str
    connectivity: Any = None
    rows_asked: int | None = None
    manifest: str | None = None
    ran: bool | None = None
    """None: its runs are not watched."""
    compile_seconds: float | None = None
    first_run_seconds: float | None = None
    ended_by: str = ""

    @property
    def counts(self) -> bool:
        """Whether it is a model, and not a loss or a part of a model."""
        return self.kind != "part" and self.outcome not in SILENT

    @property
    def wiring(self) -> tuple[Any, ...]:
        """What ranks have in common."""
        return (self.model, self.outcome, str(self.connectivity), self.rows_rewired, self.rows_asked, self.left_out)


@dataclass(frozen=True)
class Refused:
    """An error that ended a compile."""

    kind: Literal["error"]
    error: str
    reason: str


@dataclass(frozen=True)
class Process:
    """A process, and what it has compiled, oldest first."""

    kind: Literal["process"]
    host: str
    pid: int
    parent: int
    started: str
    rank: int
    ranks: int
    job: str
    command: str
    written: float
    compiled: tuple[Compiled, ...] = ()
    errors: tuple[Refused, ...] = ()
    error_is_last: bool = False

    @cached_property
    def alive(self) -> bool | None:
        """None: it ran on another host."""
        if self.host != platform.node():
            return None
        return bool(self.started) and started(self.pid) == self.started

    @property
    def models(self) -> tuple[Compiled, ...]:
        """The last graph of each model."""
        return tuple({one.model: one for one in self.compiled if one.counts}.values())

    @property
    def alike(self) -> tuple[Any, ...]:
        """What ranks have in common."""
        ran = tuple((one.ran, one.first_run_seconds is None, one.manifest, one.kind) for one in self.models)
        return (tuple(one.wiring for one in self.models), ran, self.errors)

    @property
    def answer(self) -> Answer:
        """Whether it runs rewired."""
        counted = [one for one in self.compiled if one.counts]
        if self.error_is_last or any(one.outcome == REFUSED for one in counted):
            return "NOT REWIRED"
        rewired = [one for one in self.models if one.outcome in REWIRED]
        if any(one.ran is not False for one in rewired):
            return "rewired"
        return "NOT REWIRED" if counted and not rewired else "unknown"

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {**encode(self), "alive": self.alive, "answer": self.answer}


@dataclass(frozen=True)
class Found:
    """What a folder says."""

    processes: tuple[Process, ...]
    """Those that count, by job and rank."""
    earlier: int
    """Files of processes that were restarted since."""

    @property
    def problems(self) -> tuple[str, ...]:
        """In what ranks differ, and which have left nothing."""
        jobs: dict[tuple[str, int], list[Process]] = {}
        for one in self.processes:
            jobs.setdefault((one.job, one.ranks), []).append(one)
        return tuple(text for members in jobs.values() for text in _problems(members))

    @property
    def rewired(self) -> bool:
        """Whether all of them run rewired, and alike."""
        return bool(self.processes) and not self.problems and all(one.answer == "rewired" for one in self.processes)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {
            "rewired": self.rewired,
            "problems": list(self.problems),
            "earlier": self.earlier,
            "processes": [one.to_json() for one in self.processes],
        }


def _problems(members: list[Process]) -> Iterable[str]:
    first = members[0]
    wiring = sorted(one.wiring for one in first.models)
    for one in members[1:]:
        if sorted(other.wiring for other in one.models) != wiring or one.answer != first.answer:
            yield f"rank {one.rank} differs from rank {first.rank}: {_short(one)}; rank {first.rank}: {_short(first)}"
    missing = sorted({*range(first.ranks)} - {one.rank for one in members})
    if missing:
        which = f"rank {missing[0]}" if len(missing) == 1 else f"ranks {', '.join(map(str, missing))}"
        yield f"{which} of {first.ranks} left no file: no graph has reached farskip there, or it writes elsewhere"


def _short(process: Process) -> str:
    models = (f"{one.model} {one.outcome}, {one.rows_rewired} of {amount(one.rows, 'row')}" for one in process.models)
    return ", ".join(models) or (process.errors[-1].error if process.errors else "nothing compiled")


def read_folder(folder: Path, pid: int | None = None) -> Found:
    """What the processes have left in `folder`; with `pid`, those of its job alone: the process, what it has started,
    and the other ranks beside it.

    Raises:
        ConfigError: the folder does not exist, or a file in it is damaged.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"the folder {str(folder)!r} does not exist",
            way_out=f"start the program with {VARIABLE} set, and give that folder",
        )
    every = [_read(path) for path in sorted(folder.glob(f"*{SUFFIX}")) if not path.name.startswith(".")]
    if pid is not None:
        ours = {(one.job, one.ranks, one.parent) for one in every if pid in (one.pid, one.parent)}
        every = [one for one in every if (one.job, one.ranks, one.parent) in ours]
    places: dict[tuple[str, int, int], list[Process]] = {}
    for one in sorted(every, key=lambda one: (one.job, one.ranks, one.rank, one.written)):
        places.setdefault((one.job, one.ranks, one.rank), []).append(one)
    counting = [[one for one in same if one.alive] or same[-1:] for same in places.values()]
    chosen = tuple(one for same in counting for one in same)
    return Found(chosen, len(every) - len(chosen))


def folder_of(pid: int) -> Path:
    """The folder that a running process writes into.

    Raises:
        ConfigError: the process does not exist, may not be asked, or writes none.
    """
    way_out = f"start it with {VARIABLE}=FOLDER, and give the folder or the number of the process"
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes()
        folder = Path(os.readlink(f"/proc/{pid}/cwd"))
    except OSError as error:
        raise ConfigError(f"process {pid} can't be asked: {error.strerror}", way_out="give the folder") from error
    for entry in content.split(b"\0"):
        name, _, value = entry.decode(errors="surrogateescape").partition("=")
        if name == VARIABLE and value:
            return folder / value
    raise ConfigError(f"process {pid} was started without {VARIABLE}, so it writes nothing down", way_out=way_out)


def _read(path: Path) -> Process:
    way_out = "remove the file: `farskip status` reads what processes have written themselves"
    try:
        head, *rest = [parse_json(line) for line in read_bytes(path).decode().splitlines()] or [None]
    except (OSError, ValueError) as error:
        raise ConfigError(f"can't read {str(path)!r}: {error}", way_out="remove the file") from error
    reader = Reader(str(path), way_out=way_out, accepts_null=True)
    plain: Mapping[str, Any] = reader.version(head, (SCHEMA,))
    compiled: list[Compiled] = []
    errors: list[Refused] = []
    last = False
    for line in rest:
        last = isinstance(line, dict) and line.get("kind") == "error"
        if last:
            errors.append(reader.decode(Refused, line))
        else:
            compiled.append(reader.decode(Compiled, line))
    found = {"compiled": (), "errors": (), "error_is_last": last, **plain}
    process = reader.decode(Process, found)
    return Process(**{**vars(process), "compiled": tuple(compiled), "errors": tuple(errors)})


def started(pid: int) -> str:
    """When process `pid` of this host began, in a form that tells it from an earlier one with its number; empty: there
    is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        return text.rpartition(")")[2].split()[19]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return ""
    try:
        os.kill(pid, 0)  # nothing is sent
    except ProcessLookupError:
        return ""
    except OSError:  # somebody else's
        pass
    return "some time"
