# SPDX-License-Identifier: Apache-2.0
"""A prediction as a Chrome trace, for ui.perfetto.dev or chrome://tracing.

Contract: from a `Prediction` alone. The trace has one process for each order, with a lane for compute and one for each
channel, and the phases of a step one after the other; views and whatever else takes no time are left out.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from farskip_compile.errors import ConfigError
from farskip_compile.measure.simulate.results import Prediction, StepResult
from farskip_compile.measure.simulate.text import NAMES
from farskip_compile.passes.schedule.program import TaskRole

SHORTEST = 1e-9
"""Seconds below which a task is left out."""


def write_trace(found: Prediction, path: Path) -> None:
    """Write all orders of a prediction to `path`, compressed if the name ends in `.gz`.

    Raises:
        ConfigError: the file can't be written.
    """
    events: list[dict[str, Any]] = []
    for place, (key, step) in enumerate(found.orders.items()):
        events += _events(place, NAMES.get(key, key), step)
    text = json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}).encode()
    try:
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    except OSError as error:
        raise ConfigError(f"can't write {path}: {error.strerror}", way_out="a path that can be written") from None


def _events(process: int, name: str, step: StepResult) -> Iterator[dict[str, Any]]:
    yield _named("process_name", process, 0, name)
    yield _named("thread_name", process, 0, "compute")
    lanes: dict[str, int] = {}
    begin = 0.0
    for phase in step.phases:
        for index in phase.order:
            task, start, end = phase.program.tasks[index], phase.timeline.start[index], phase.timeline.end[index]
            if end - start < SHORTEST:
                continue
            lane = lanes.setdefault(task.channel, len(lanes) + 1) if task.role is TaskRole.LAUNCH else 0
            yield {
                "ph": "X",
                "pid": process,
                "tid": lane,
                "name": "wait" if task.role is TaskRole.WAIT else task.name,
                "cat": str(task.role),
                "ts": 1e6 * (begin + start),
                "dur": 1e6 * (end - start),
                "args": {"phase": phase.phase, "terms": " ".join(task.terms)},
            }
        begin += phase.timeline.makespan
    for channel, lane in lanes.items():
        yield _named("thread_name", process, lane, f"collectives of group {channel}")


def _named(what: str, process: int, lane: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": process, "tid": lane, "name": what, "args": {"name": name}}
