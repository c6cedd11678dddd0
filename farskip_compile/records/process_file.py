# SPDX-License-Identifier: Apache-2.0
"""A file about the models that this process runs, for `farskip status`: only if FARSKIP_STATUS_DIR names a folder.

In:    graphs when they are compiled and when they have run first, whole models whose layers are compiled one by one,
       errors that ended a compile, and what Dynamo compiles no further version of.
Out:   one small file of JSON lines for each process, `HOST-PID-PLACE.jsonl`: the process, then a line for each of them.
       It is replaced as a whole, at those moments; in between a thread touches it, which other hosts take for a sign of
       life, and takes out what is about modules that are gone.
Never: writes anything if the variable is not set; fails a run because a file can't be written (a warning says so);
       writes a parent's lines for a process that was forked.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import platform
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from farskip_compile._compat.distributed import world_group, world_size
from farskip_compile._compat.runs import class_name, traced
from farskip_compile.base.json_files import write_text
from farskip_compile.errors import ConfigError, FarSkipError
from farskip_compile.records.compile import CompileReport
from farskip_compile.records.expected import PhaseOverlap, expected
from farskip_compile.records.line import rank
from farskip_compile.records.living import BEAT, place, started
from farskip_compile.records.processes import SCHEMA, SUFFIX, VARIABLE
from farskip_compile.records.ran import Graph
from farskip_compile.records.rows import SubBlockRows, in_words
from farskip_compile.text_utils import shortened

log = logging.getLogger("farskip_compile")

MOST = 256
"""Lines of a file; the oldest go first, those of parts before others."""
LONGEST = 500
"""Most characters of a reason."""
MOST_ROWS = 8
"""Rows that are named because they do not read what was asked for."""


@dataclass(frozen=True)
class _Noted:
    """A line of the file."""

    line: dict[str, Any]
    is_current: Callable[[], bool]
    """False once what the line is about is gone: the module, or what was compiled."""


_lines: dict[str | int, _Noted] = {}
"""Map the subject of each line to the line, oldest first."""
_owners: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
"""Module that something was compiled of -> its number."""
_numbers = itertools.count(1)
"""Numbers of modules, and of what is told once: ids come again, and would leave a line in an old place."""
_lock = threading.Lock()
_warned = False
_beating = False


def note_graph(graph: Graph) -> None:
    """`graph` was compiled, or has run for the first time."""
    if _folder() is None:
        return
    line = _line("part" if graph.is_part else "graph", graph.model, graph.report, expected([[graph]]))
    line |= {"compile_seconds": graph.compile_seconds, "first_run_seconds": graph.first_seconds}
    line["ended_by"] = shortened(graph.ended_by or "", LONGEST)
    owner = graph.owner() if graph.owner is not None else None
    known = weakref.ref(graph)
    _put(graph.number, line | {"ran": graph.runs > 0}, owner, lambda: _may_run(known()))


def note_report(report: CompileReport) -> None:
    """A graph was compiled whose runs are not watched."""
    if _folder() is not None:
        _put(f"report {next(_numbers)}", _line("graph", "", report, ()) | {"ran": None}, None)


def note_whole_model(model: nn.Module, report: CompileReport, overlap: tuple[PhaseOverlap, ...]) -> None:
    """A model has run whose layers are compiled one by one."""
    if _folder() is not None:
        line = _line("layers", class_name(model), report, overlap)
        _put(f"layers of {id(model)}", line | {"ran": True}, model)


def note_failure(kind: Literal["error", "stopped"], error: FarSkipError, module: nn.Module | None) -> None:
    """An error ended a compile of `module`; or Dynamo compiles no further version of something that `module` runs."""
    if _folder() is not None:
        line = {"kind": kind, "error": type(error).__name__, "reason": shortened(str(error), LONGEST)}
        named = {"model": class_name(module)} if module is not None else {}
        about = f"{kind} {id(module)} {error.reason}"
        with _lock:
            _lines.pop(about, None)  # one that comes again is the last one
        _put(about, line | named, module)


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


def _line(kind: str, model: str, report: CompileReport, overlap: tuple[PhaseOverlap, ...]) -> dict[str, Any]:
    rows = SubBlockRows.of(report)
    asked = rows.asked or ()
    return {
        "kind": kind,
        "model": model,
        "outcome": str(report.outcome),
        "connectivity": _comparable(report.config.get("connectivity"), report.config.get("layers")),
        "rows_rewired": len(rows.rewired),
        "rows_asked": len(asked) if rows.asked is not None else None,
        "rows_missing": [name for name in asked if name not in {*rows.rewired}][:MOST_ROWS],
        "rows": rows.total,
        "left_out": list(in_words(report.table)),
        "manifest": report.config.get("manifest"),
        "overlap": [one.to_json() for one in overlap],
        "reason": shortened(report.reason, LONGEST),
        "compile_id": report.compile_id,
    }


def _comparable(*options: Any) -> str:
    """Options as a text that is equal for equal ones, and short: a table may name hundreds of rows."""
    text = " ".join(json.dumps(one, sort_keys=True) for one in options if one is not None)
    return text if len(text) <= LONGEST else hashlib.sha256(text.encode()).hexdigest()


def _put(
    about: str | int, line: dict[str, Any], owner: nn.Module | None, is_current: Callable[[], bool] | None = None
) -> None:
    with _lock:
        if owner is not None:
            line["owner"] = _owners.setdefault(owner, next(_numbers))
            known = weakref.ref(owner)
            is_current = is_current or (lambda: known() is not None)
        _lines[about] = _Noted(line, is_current or (lambda: True))
        while len(_lines) > MOST:
            parts = (key for key, one in _lines.items() if one.line["kind"] == "part")
            del _lines[next(parts, next(iter(_lines)))]
        _write()
        _begin_to_beat()


def _may_run(graph: Graph | None) -> bool:
    """Return whether a graph may run again: PyTorch keeps it, and a model that it ran with or was made of."""
    if graph is None:
        return False
    return graph.owner is None or graph.owner() is not None or len(graph.given) > 0


def _forget() -> bool:
    """Take out lines about what is gone; whether there were any."""
    gone = [about for about, one in _lines.items() if not one.is_current()]
    for about in gone:
        del _lines[about]
    return bool(gone)


def _write() -> None:
    global _warned
    folder = _folder()
    if folder is None:
        return
    _forget()
    text = "".join(f"{json.dumps(line)}\n" for line in (_process(), *(one.line for one in _lines.values())))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(_path(folder), text)
    except (OSError, ConfigError) as error:
        if not _warned:
            log.warning("%s=%s: `farskip status` will not see this process: %s", VARIABLE, folder, error)
        _warned = True


def _path(folder: Path) -> Path:
    return folder / f"{platform.node()}-{os.getpid()}-{place()}{SUFFIX}"


def _begin_to_beat() -> None:
    global _beating
    if not _beating:
        _beating = True
        threading.Thread(target=_beat, name="farskip status", daemon=True).start()


def _beat() -> None:
    while True:
        time.sleep(BEAT)
        folder = _folder()
        if folder is None:
            continue
        with _lock, contextlib.suppress(OSError):
            if _forget():
                _write()
            os.utime(_path(folder))


def _after_fork() -> None:
    global _lock, _beating
    _lock, _beating = threading.Lock(), False
    _lines.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _process() -> dict[str, Any]:
    """The first line."""
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
