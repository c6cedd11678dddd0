# SPDX-License-Identifier: Apache-2.0
"""The line that a user sees at the first step of each compiled model: is it rewired, what is expected of it.

In:    the record of a model.
Out:   `say`: one message of the logger `farskip_compile.first_step`, from rank 0: of level INFO, or WARNING if the
       model is not rewired although that was asked for. Other ranks log the message at DEBUG.
Never: twice for one model, nor for its recompiles that came out alike; for each layer of a model that is compiled layer
       by layer; for a loss, or another graph without a residual stack.

The line is seen by default. Where nobody has given Python's logging a handler, it goes to stderr, as warnings do. The
level of the logger `farskip_compile` (or `farskip_compile.first_step`) is heeded if it was set, and `logging.disable`.
"""

from __future__ import annotations

import logging
import os
import sys

import torch
import torch.distributed as dist

from farskip_compile._compat.distributed import world_group
from farskip_compile.records.compile import CompileReport, Outcome
from farskip_compile.records.record import CompileRecord
from farskip_compile.records.registry import COMPILES

log = logging.getLogger("farskip_compile.first_step")


def rank() -> int:
    """Return the rank of this process, by `torch.distributed`, else as a launcher has numbered it."""
    return dist.get_rank() if world_group() is not None else int(os.environ.get("RANK", "0") or 0)


def say(report: CompileReport, record: CompileRecord, no_overlap: str, parameter: torch.Tensor | None) -> None:
    """Log the line of a model that has run for the first time, unless the same was said of the model before.

    Args:
        report: what became of the model.
        record: the record of the same compile.
        no_overlap: why no overlap is expected, if none is.
        parameter: the first parameter of the model, which tells it from other models.
    """
    if not report.outcome.is_of_model:
        return
    wiring = wiring_text(report, record)
    with COMPILES.lock:
        if parameter is not None:
            said: set[str] = COMPILES.wiring_said.setdefault(parameter, set())
            if wiring in said:
                return
            said.add(wiring)
    overlap = f"No overlap expected ({no_overlap})"
    if record.overlap:
        overlap = f"Expected overlap {' and '.join(map(str, record.overlap))}"
    level = logging.WARNING if report.outcome is Outcome.REFUSED else logging.INFO
    emit(level, f"{record.model or 'a model'}: {wiring}. {overlap}; {record.manifest_text}.")


def wiring_text(report: CompileReport, record: CompileRecord) -> str:
    """Return what became of the rows: `rewired 5 of 5 rows (attention leaves out ..., moe leaves out ...)`."""
    if report.outcome is Outcome.REFUSED:
        return "NOT REWIRED, compiled as it is written (strict=False)"
    if report.outcome is Outcome.UNCHANGED:
        return 'not rewired, as asked (connectivity="none")'
    if report.outcome is Outcome.ALREADY:
        return f"already in the form asked for ({report.wiring_after}), {report.asked_rows}"
    return f"rewired {report.asked_rows}: {'; '.join(record.left_out)}"


def emit(level: int, text: str) -> None:
    """Log `text`, seen by default; see above."""
    if rank() != 0:
        log.debug("rank %d: %s", rank(), text)
        return
    loggers = (log, logging.getLogger("farskip_compile"))
    least = next((one.level for one in loggers if one.level), logging.INFO)
    if level < least or level <= log.manager.disable:
        return
    message = log.makeRecord(log.name, level, __file__, 0, text, (), None)
    if log.hasHandlers():
        log.handle(message)
    elif not log.disabled and log.filter(message):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("farskip: %(message)s"))
        handler.handle(message)
