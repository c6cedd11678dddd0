# SPDX-License-Identifier: Apache-2.0
"""What this process has compiled, in a file that `farskip status` reads: only if FARSKIP_STATUS_DIR names a folder.

In:    graphs when they are compiled and when they have run first, whole models whose layers are compiled one by one,
       errors that ended a compile.
Out:   one small file of JSON lines for each process, `HOST-PID.jsonl`: the process, then a line for each of them. It is
       replaced as a whole, at those moments only.
Never: writes anything if the variable is not set; fails a run because a file can't be written (a warning says so).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from farskip_compile._compat.distributed import world_group, world_size
from farskip_compile._compat.runs import class_name
from farskip_compile.errors import ConfigError, FarSkipError
from farskip_compile.json_files import write_text
from farskip_compile.report.compile import CompileReport
from farskip_compile.report.expected import Overlap, expected
from farskip_compile.report.line import rank
from farskip_compile.report.processes import SCHEMA, VARIABLE, started
from farskip_compile.report.ran import Graph
from farskip_compile.report.rows import Rows, in_words
from farskip_compile.text_utils import shortened

log = logging.getLogger("farskip_compile")

MOST = 256
"""Lines of a file; the oldest go first."""
LONGEST = 500
"""Most characters of a reason."""

_lines: dict[str | int, dict[str, Any]] = {}
"""What each line is about -> the line."""
_numbers = itertools.count(1)
"""Of what is told once; ids come again, and the line would stay where the first one stood."""
_lock = threading.Lock()
_warned = False


def note_graph(graph: Graph) -> None:
    """`graph` was compiled, or has run for the first time."""
    if _folder() is None:
        return
    line = _line("part" if graph.is_part else "graph", graph.model, graph.report, expected([[graph]]))
    line |= {"compile_seconds": graph.compile_seconds, "first_run_seconds": graph.first_seconds}
    line["ended_by"] = shortened(graph.ended_by or "", LONGEST)
    _put(graph.number, line | {"ran": graph.runs > 0})


def note_report(report: CompileReport) -> None:
    """A graph was compiled whose runs are not watched."""
    if _folder() is not None:
        _put(f"report {next(_numbers)}", _line("graph", "", report, ()) | {"ran": None})


def note_whole_model(model: nn.Module, report: CompileReport, overlap: tuple[Overlap, ...]) -> None:
    """A model has run whose layers are compiled one by one."""
    if _folder() is not None:
        _put(f"layers of {id(model)}", _line("layers", class_name(model), report, overlap) | {"ran": True})


@contextlib.contextmanager
def errors_noted() -> Iterator[None]:
    """Note what this package refuses within the block; the error passes."""
    try:
        yield
    except FarSkipError as error:
        if _folder() is not None:
            _put(
                f"error {next(_numbers)}",
                {"kind": "error", "error": type(error).__name__, "reason": shortened(str(error), LONGEST)},
            )
        raise


def _folder() -> Path | None:
    name = os.environ.get(VARIABLE)
    return Path(name) if name else None


def _line(kind: str, model: str, report: CompileReport, overlap: tuple[Overlap, ...]) -> dict[str, Any]:
    rows = Rows.of(report)
    return {
        "kind": kind,
        "model": model,
        "outcome": str(report.outcome),
        "connectivity": report.config.get("connectivity"),
        "rows_rewired": len(rows.rewired),
        "rows_asked": len(rows.asked) if rows.asked is not None else None,
        "rows": rows.total,
        "left_out": list(in_words(report.table)),
        "manifest": report.config.get("manifest"),
        "overlap": [one.to_json() for one in overlap],
        "reason": shortened(report.reason, LONGEST),
        "compile_id": report.compile_id,
    }


def _put(about: str | int, line: dict[str, Any]) -> None:
    with _lock:
        _lines[about] = line
        while len(_lines) > MOST:
            del _lines[next(iter(_lines))]
        _write()


def _write() -> None:
    global _warned
    folder = _folder()
    assert folder is not None
    text = "".join(f"{json.dumps(line)}\n" for line in (_process(), *_lines.values()))
    path = folder / f"{platform.node()}-{os.getpid()}.jsonl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except (OSError, ConfigError) as error:
        if not _warned:
            log.warning("%s=%s: `farskip status` will not see this process: %s", VARIABLE, folder, error)
        _warned = True


def _process() -> dict[str, Any]:
    """The first line."""
    number = os.environ.get
    return {
        "schema": SCHEMA,
        "kind": "process",
        "host": platform.node(),
        "pid": os.getpid(),
        "parent": os.getppid(),
        "started": started(os.getpid()),
        "rank": rank(),
        "ranks": world_size() if world_group() is not None else int(number("WORLD_SIZE", "1") or 1),
        "job": number("TORCHELASTIC_RUN_ID", ""),
        "command": shortened(" ".join(sys.argv), 200),
        "written": time.time(),
    }
