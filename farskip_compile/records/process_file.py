# SPDX-License-Identifier: Apache-2.0
"""The registry's facts about running models, and their file for `farskip status`.

In:    graphs when they are compiled and when they have run first, models whose layers are compiled one by one, errors
       that ended a compile, and functions that Dynamo compiles no further version of.
Out:   entries of the registry; and only if FARSKIP_STATUS_DIR names a folder, one small file of JSON lines there for
       each process, `HOST-PID-PLACE.jsonl`: the process, then a line for each record. The file is replaced as a whole,
       at those moments; in between a thread touches it, which other hosts take for a sign of life, and takes out
       records of modules that are gone.
Never: writes anything if the variable is not set; fails a run because a file can't be written (a warning says so);
       writes a parent's lines for a process that was forked.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import sys
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any, Literal

from torch import nn

from farskip_compile._compat.distributed import world_group, world_size
from farskip_compile._compat.runs import class_name, traced
from farskip_compile.base.json_files import encode, write_text
from farskip_compile.errors import ConfigError, FarSkipError
from farskip_compile.records.compile import CompileReport
from farskip_compile.records.line import rank
from farskip_compile.records.living import BEAT, place, started
from farskip_compile.records.processes import SCHEMA, SUFFIX, VARIABLE
from farskip_compile.records.record import LONGEST, CompileRecord, Failure
from farskip_compile.records.registry import COMPILES, Entry
from farskip_compile.text_utils import shortened

log = logging.getLogger("farskip_compile")


class _File:
    """The state of the file of this process."""

    has_warned = False
    is_touched = False
    """A thread touches the file."""


def note_compile(subject: Hashable, record: Callable[[], CompileRecord | None], *, is_part: bool = False) -> None:
    """Note a compile in the registry and in the file.

    Args:
        subject: what was compiled; a later call with the same subject replaces the entry.
        record: makes the record of the compile; None once what was compiled is gone.
        is_part: the compile is of a part of a model.
    """
    COMPILES.put(subject, Entry(record, is_part))
    write()


def note_report(report: CompileReport) -> None:
    """Note that a graph was compiled whose runs are not watched."""
    record = CompileRecord.of(report)
    note_compile(f"report {next(COMPILES.numbers)}", lambda: record)


def note_failure(
    kind: Literal["error", "stopped"], error: FarSkipError, module: nn.Module | None, frame: str = ""
) -> None:
    """Note an error that ended a compile, or a function that runs as it is written from now on.

    Args:
        kind: `error` if the call ended, `stopped` if it went on.
        error: what is wrong.
        module: the module that was called; None: not known.
        frame: Dynamo's number of the function; empty: not known.
    """
    name = class_name(module) if module is not None else ""
    owner = COMPILES.owner_number(module)
    failure = Failure(kind, type(error).__name__, shortened(str(error), LONGEST), name, owner, frame)
    known = weakref.ref(module) if module is not None else None
    entry = Entry(lambda: failure if known is None or known() is not None else None, is_stop=kind == "stopped")
    COMPILES.put(f"{kind} {id(module)} {error.reason}", entry, last=True)
    write()


@contextlib.contextmanager
def errors_noted() -> Iterator[None]:
    """Note what this package refuses within the block; the error passes."""
    try:
        yield
    except FarSkipError as error:
        note_failure("error", error, traced())
        raise


def _folder() -> Path | None:
    name = os.environ.get(VARIABLE)
    return Path(name) if name else None


def write() -> None:
    """Write the file of this process, and let a thread touch it from now on; nothing if no folder is named."""
    folder = _folder()
    if folder is None:
        return
    with COMPILES.lock:
        lines = [_process(), *(encode(record) for record in COMPILES.records())]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(_path(folder), "".join(f"{json.dumps(line)}\n" for line in lines))
        except (OSError, ConfigError) as error:
            if not _File.has_warned:
                log.warning("%s=%s: `farskip status` will not see this process: %s", VARIABLE, folder, error)
            _File.has_warned = True
        if not _File.is_touched:
            _File.is_touched = True
            threading.Thread(target=_touch, name="farskip status", daemon=True).start()


def _path(folder: Path) -> Path:
    return folder / f"{platform.node()}-{os.getpid()}-{place()}{SUFFIX}"


def _touch() -> None:
    while True:
        time.sleep(BEAT)
        folder = _folder()
        if folder is None:
            continue
        with COMPILES.lock, contextlib.suppress(OSError):
            if COMPILES.forget_gone():
                write()
            os.utime(_path(folder))


def _after_fork() -> None:
    _File.is_touched = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _process() -> dict[str, Any]:
    """Return the first line."""
    number = os.environ.get
    return {
        "schema": SCHEMA,
        "kind": "process",
        "host": platform.node(),
        "place": place(),
        "pid": os.getpid(),
        "parent": os.getppid(),
        "started": started(os.getpid()),
        "rank": rank(),
        "ranks": world_size() if world_group() is not None else int(number("WORLD_SIZE", "1") or 1),
        "job": number("TORCHELASTIC_RUN_ID", ""),
        "command": shortened(" ".join(sys.argv), 200),
    }
