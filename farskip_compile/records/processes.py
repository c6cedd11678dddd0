# SPDX-License-Identifier: Apache-2.0
"""The files that processes leave in FARSKIP_STATUS_DIR, and what they say together of what runs now.

In:    the folder.
Out:   `FolderStatus`: the processes, which of them live, which models of these run every row that was asked for, in
       what the ranks of one job differ, and files that can't be read.
Never: asks a process anything; takes what it can't tell for a yes; reads more than `MOST_FILES` files, or of one more
       than `reading.DOCUMENT_BYTES`. Does work in proportion to a number in a file. Lets one file hide the others.

Only processes that live count. Of those with one rank in one job, the others were restarted, or have ended. Whoever can
write into the folder is believed.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farskip_compile.base.json_files import JsonReader
from farskip_compile.base.reading.files import read_bytes
from farskip_compile.base.reading.strict_json import parse_json
from farskip_compile.errors import ConfigError
from farskip_compile.records.living import Life, clock_of, life_of, place
from farskip_compile.records.process import Process, ProcessHead
from farskip_compile.records.record import Answer, CompileRecord, Failure, ProcessRecord
from farskip_compile.text_utils import amount, shortened

VARIABLE = "FARSKIP_STATUS_DIR"
SCHEMA = 2
SUFFIX = ".jsonl"
MOST_FILES = 20_000
"""The newest ones are read."""
WAY_OUT = "remove the file: `farskip status` reads what processes have written themselves"
MOST_NAMED = 6
"""Ranges of ranks that are named."""
LONGEST = 200
"""Characters of a reason."""


@dataclass(frozen=True)
class FolderStatus:
    """The processes that have left files in a folder."""

    processes: tuple[Process, ...]
    """The living processes, and the last one of each rank without a living one, by job and rank."""
    earlier: int = 0
    """Files of processes that have ended, and in whose place others live or ended later."""
    unreadable: tuple[str, ...] = ()
    """Files that can't be read, and why."""

    @property
    def alive(self) -> tuple[Process, ...]:
        """The living processes."""
        return tuple(one for one in self.processes if one.is_alive)

    @property
    def problems(self) -> tuple[str, ...]:
        """Return how the ranks of each living job differ, and which do not run or left nothing."""
        jobs: dict[tuple[str, int], list[Process]] = {}
        for one in self.processes:
            jobs.setdefault((one.head.job, one.head.ranks), []).append(one)
        return tuple(
            text for members in jobs.values() if any(one.is_alive for one in members) for text in _problems(members)
        )

    @property
    def rewired(self) -> bool:
        """Return whether every model of every living process runs every row that was asked for."""
        return self.status == 0

    @property
    def status(self) -> int:
        """The exit status of `farskip status`: 0 rewired, 1 something is not, 2 nothing runs, or it can't be told."""
        if self.problems or any(one.answer is not Answer.REWIRED for one in self.alive):
            return 1
        return 0 if self.alive and not self.unreadable else 2

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {
            "rewired": self.rewired,
            "status": self.status,
            "problems": list(self.problems),
            "unreadable": list(self.unreadable),
            "earlier": self.earlier,
            "processes": [one.to_json() for one in self.processes],
        }


def _problems(members: Sequence[Process]) -> Iterator[str]:
    alive = [one for one in members if one.is_alive]
    first = alive[0]
    for one in alive[1:]:
        if one.wirings != first.wirings or one.answer != first.answer:
            yield (
                f"rank {one.head.rank} differs from rank {first.head.rank}: {_short(one)}; "
                f"rank {first.head.rank}: {_short(first)}"
            )
    living = {one.head.rank for one in alive}
    for life in Life:
        if gone := {one.head.rank for one in members if one.life is life} - living:
            yield f"{ranges_text(ranges_of(gone))} of {first.head.ranks}: {life}"
    if missing := list(_gaps(sorted({one.head.rank for one in members}), first.head.ranks)):
        text = f"{ranges_text(missing)} of {first.head.ranks} left no file: no graph has reached farskip there, or "
        yield f"{text}{'they write' if len(missing) > 1 or missing[0][0] < missing[0][1] else 'it writes'} elsewhere"


def _gaps(ranks: Sequence[int], count: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of the ranks below `count` that are not among `ranks`, which are sorted."""
    for before, after in zip((-1, *ranks), (*ranks, count), strict=True):
        if after - before > 1:
            yield before + 1, after - 1


def ranges_of(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Return the first and the last of each run of neighbours among `numbers`."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def ranges_text(ranges: Sequence[tuple[int, int]], most: int = MOST_NAMED) -> str:
    """Return `ranks 0, 1, 5 to 9 and others`: at most `most` ranges are named."""
    texts = []
    for first, last in ranges[:most]:
        named = [str(first)] if last == first else [f"{first}", f"{last}"]
        texts.append((", " if last == first + 1 else " to ").join(named))
    is_one = len(ranges) == 1 and ranges[0][0] == ranges[0][1]
    return f"{'rank' if is_one else 'ranks'} {', '.join(texts)}{' and others' if len(ranges) > most else ''}"


def _short(process: Process) -> str:
    models = ", ".join(shortened(str(one), LONGEST) for one in process.models[:3])
    return (
        ", ".join([*([models] if models else []), *(one.error for one in process.failures[:1])]) or "nothing compiled"
    )


def read_folder(folder: Path, pid: int | None = None) -> FolderStatus:
    """Read the files that processes left in `folder`.

    Args:
        folder: that FARSKIP_STATUS_DIR named.
        pid: of a process on this machine: its job alone is looked at, which is what it has started, and the other
            ranks beside it.

    Raises:
        ConfigError: the folder does not exist, or can't be read.
    """
    try:
        files = [path for path in folder.iterdir() if path.suffix == SUFFIX and not path.name.startswith(".")]
    except OSError as error:
        raise ConfigError(
            f"can't read the folder {str(folder)!r}: {error.strerror}",
            way_out=f"start the program with {VARIABLE} set, and give that folder",
        ) from error
    clock = clock_of(folder)
    signs: dict[Path, float] = {}
    for path in files:
        with contextlib.suppress(OSError):  # removed meanwhile, or a link that leads nowhere
            signs[path] = path.stat().st_mtime
    every: list[tuple[float, Process]] = []
    unreadable: list[str] = []
    for path in sorted(signs, key=lambda one: (-signs[one], one.name)):
        if len(every) + len(unreadable) == MOST_FILES:
            unreadable.append(f"{amount(len(signs) - MOST_FILES, 'older file')}: more than {MOST_FILES} are not read")
            break
        try:
            every.append((signs[path], _read(path, signs[path], clock)))
        except (ConfigError, OSError, ValueError) as error:
            unreadable.append(f"{path.name}: {_reason(error)}")
    if pid is not None:
        every = _job_of(pid, every)
    chosen = _chosen(every)
    return FolderStatus(chosen, len(every) - len(chosen), tuple(unreadable))


def _job_of(pid: int, every: Sequence[tuple[float, Process]]) -> list[tuple[float, Process]]:
    def job(head: ProcessHead) -> tuple[object, ...]:
        return (head.job, head.ranks) if head.job else (head.place, head.parent, head.ranks)

    here = place()
    ours = {job(one.head) for _, one in every if one.head.place == here and pid in (one.head.pid, one.head.parent)}
    return [(sign, one) for sign, one in every if job(one.head) in ours]


def _chosen(every: Sequence[tuple[float, Process]]) -> tuple[Process, ...]:
    ranks: dict[tuple[str, int, int], list[tuple[float, Process]]] = {}
    for sign, one in every:
        ranks.setdefault((one.head.job, one.head.ranks, one.head.rank), []).append((sign, one))
    found: list[Process] = []
    for key in sorted(ranks):
        same = sorted(ranks[key], key=lambda signed: signed[0])
        found += [one for _, one in same if one.is_alive] or [same[-1][1]]
    return tuple(found)


def folder_of(pid: int) -> Path:
    """Return the folder that a running process writes into.

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


def _read(path: Path, sign: float, clock: float | None) -> Process:
    first, *rest = read_bytes(path).decode().removesuffix("\n").split("\n")
    reader = JsonReader("the file", way_out=WAY_OUT, accepts_null=True)
    head = reader.decode(ProcessHead, reader.version(parse_json(first), (SCHEMA,)))
    records: list[ProcessRecord] = []
    for text in rest:
        line = parse_json(text)
        is_failure = isinstance(line, dict) and line.get("kind") in ("error", "stopped")
        records.append(reader.decode(Failure, line) if is_failure else reader.decode(CompileRecord, line))
    life = life_of(head.place, head.pid, head.started, sign, clock)
    return Process(head, life, max(0.0, clock - sign) if clock is not None else None, tuple(records))


def _reason(error: Exception) -> str:
    text = error.reason if isinstance(error, ConfigError) else str(error)
    if isinstance(error, OSError):
        text = error.strerror or text
    if isinstance(error, json.JSONDecodeError):
        text = f"it is damaged: {text}"
    return shortened(text, LONGEST)
