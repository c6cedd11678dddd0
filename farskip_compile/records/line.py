# SPDX-License-Identifier: Apache-2.0
"""The line that a user sees at the first step of each compiled model: is it rewired, what is expected of it.

In:    a report and the graphs that it is of.
Out:   `say`: one record of the logger `farskip_compile.first_step`, from rank 0: of level INFO, or WARNING if the model
       is not rewired although that was asked for. Other ranks log it at DEBUG.
Never: twice for one model, nor for its recompiles that came out alike; for each layer of a model that is compiled layer
       by layer; for a loss, or another graph without a residual stack.

It is seen by default. Where nobody has given Python's logging a handler, it goes to stderr, as warnings do. The level
of the logger `farskip_compile` (or `farskip_compile.first_step`) is heeded if it was set, and `logging.disable`.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.weak import WeakIdKeyDictionary

from farskip_compile._compat.distributed import world_group
from farskip_compile.records.compile import CompileReport, Outcome
from farskip_compile.records.expected import expected, why_none
from farskip_compile.records.ran import Graph
from farskip_compile.records.rows import SubBlockRows, in_words

log = logging.getLogger("farskip_compile.first_step")
SILENT = (Outcome.NO_STACK, Outcome.FRAGMENT)

_said: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""First parameter of a model -> what was said of its wiring."""
_lock = threading.Lock()


def rank() -> int:
    """Of this process, by `torch.distributed`, else as a launcher has numbered it."""
    return dist.get_rank() if world_group() is not None else int(os.environ.get("RANK", "0") or 0)


def say(
    report: CompileReport, model: str, places: Sequence[Sequence[Graph]], parameters: Iterable[torch.Tensor]
) -> None:
    """Log the line of a model that has run for the first time, unless the same was said of it before.

    `places` are those of its graphs, as `expected` takes them; `parameters` tell it from other models.
    """
    if report.outcome in SILENT:
        return
    wiring = wired(report)
    with _lock:
        first = next(iter(parameters), None)
        if first is not None:
            said: set[str] = _said.setdefault(first, set())
            if wiring in said:
                return
            said.add(wiring)
    emit(
        logging.WARNING if report.outcome is Outcome.REFUSED else logging.INFO,
        f"{model or 'a model'}: {wiring}. {overlap(places)}; {manifest(report)}.",
    )


def wired(report: CompileReport) -> str:
    """What became of the rows: `rewired 5 of 5 rows (attention leaves out ..., moe leaves out ...)`."""
    if report.outcome is Outcome.REFUSED:
        return "NOT REWIRED, compiled as it is written (strict=False)"
    if report.outcome is Outcome.UNCHANGED:
        return 'not rewired, as asked (connectivity="none")'
    if report.outcome is Outcome.ALREADY:
        return f"already in the form asked for ({report.wiring_after}), {SubBlockRows.of(report)}"
    return f"rewired {SubBlockRows.of(report)}: {'; '.join(in_words(report.table))}"


def overlap(places: Sequence[Sequence[Graph]]) -> str:
    """What is expected to be hidden."""
    found = expected(places)
    if not found:
        return f"No overlap expected ({why_none(places)})"
    return f"Expected overlap {' and '.join(map(str, found))}"


def manifest(report: CompileReport) -> str:
    """Whether it was compiled by a manifest."""
    digest = report.config.get("manifest")
    return f"manifest {digest[:12]} checked" if digest else "no manifest"


def emit(level: int, text: str) -> None:
    """Log `text`, seen by default; see above."""
    if rank() != 0:
        log.debug("rank %d: %s", rank(), text)
        return
    loggers = (log, logging.getLogger("farskip_compile"))
    least = next((one.level for one in loggers if one.level), logging.INFO)
    if level < least or level <= log.manager.disable:
        return
    record = log.makeRecord(log.name, level, __file__, 0, text, (), None)
    if log.hasHandlers():
        log.handle(record)
    elif not log.disabled:
        _to_stderr(record)


def _to_stderr(record: Any) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("farskip: %(message)s"))
    if log.filter(record):
        handler.handle(record)
