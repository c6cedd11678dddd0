"""The comparison as text: Markdown tables, and the targets; also of the measured cells of `overlap.py`.

Contract: computed from rows alone, and from docs/benchmarks.json: for each measured cell its medians, and the timelines
that the scheduler expected of its kernels, by a profile calibrated on that machine. None is left out. A missed target
says so.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from common import Target, markdown, span

from paper_bench.predicted import WITHIN, Compared, Row
from paper_bench.published import StepTime

FRACTION = 0.8
"""Fraction of the published speed-ups that are to be predicted."""
SAME = 1e-9
LIMIT = 0.15
"""Upper limit on the median error of our own cells."""
WRITTEN, NONE, FULL = "as written", "overlapped only", "FarSkip"
SPEED, PERCENT, MILLISECONDS = "{:.3f} x", "{:.1%}", "{:.0f} ms"


@dataclass(frozen=True)
class Errors:
    """Errors of one group of steps: predicted over measured, less 1."""

    name: str
    cells: int
    middle: float
    """Median absolute error."""
    bias: float
    """Median error."""
    worst: float


def targets(rows: list[Row], own: list[Errors]) -> list[Target]:
    every = next(one for one in own if one.name == "all")
    pairs = [pair for row in rows for pair in row.compared()]
    met = sum(pair.met for pair in pairs)
    worst = max(rows, key=lambda row: max(one.published - one.farskip for one in row.predicted))
    slower = max(one.published - one.farskip for one in worst.predicted)
    return [
        Target(
            f"speed-ups within {100 * WITHIN:g} percentage points in {FRACTION:.0%} of the cells, AMD's placement",
            met >= FRACTION * len(pairs),
            f"{met} of {len(pairs)}",
        ),
        Target(
            "our order never slower than AMD's placement",
            slower <= SAME,
            "nowhere" if slower <= SAME else f"{worst.name}: {100 * slower:.2f} points slower",
        ),
        Target(
            f"median error against our own measured cells under {LIMIT:.0%}",
            every.middle < LIMIT,
            f"{every.middle:.1%} of {every.cells} steps",
        ),
    ]


def speed_table(rows: list[Row]) -> list[str]:
    head = "cell | >published | >predicted, AMD's placement | >ours | >overlapped only | met | >compute slower by"
    lines = []
    for row in rows:
        pairs = row.compared()
        ends = sorted(row.predicted, key=lambda one: one.published)
        compared = [ends[0], ends[-1]][: len(pairs)]
        slower = {one.slower(pair.published) for one, pair in zip(compared, pairs, strict=True)}
        ours = [span((getattr(one, name) for one in row.predicted), SPEED) for name in ("farskip", "scheduled")]
        factors = " to ".join(f"{one:.1f} x" for one in sorted(slower))
        lines.append([row.name, *_compared(pairs), *ours, _met(pairs), factors])
    return markdown(head, lines)


def overlap_table(rows: list[Row]) -> list[str]:
    """Published and predicted fractions of the communication that are hidden."""
    lines = []
    for row in rows:
        for name, published in row.line.overlap.items():
            found = span((one.hidden.get(name, one.hidden["total"]) for one in row.predicted), PERCENT)
            ours = span((one.hidden_ours for one in row.predicted), PERCENT) if name == "total" else ""
            lines.append([row.name, name, f"{published:.1%}", found, ours])
    return markdown("cell |  | >published | >predicted, AMD's placement | >ours", lines)


def time_table(rows: list[Row]) -> list[str]:
    head = "cell | >tokens of a sequence | >as written | >communication | >exposed, AMD's | >exposed, ours | >took"
    lines = []
    for row in rows:
        for one in row.predicted:
            whole = [MILLISECONDS.format(1e3 * seconds) for seconds in (one.written, one.communication)]
            exposed = [f"{1e3 * seconds:.1f} ms" for seconds in one.exposed]
            lines.append([row.name, str(one.prompt), *whole, *exposed, f"{one.took:.0f} s"])
    return markdown(head, lines)


def step_time_table(rows: list[Row]) -> list[str]:
    """Predictions that start from published step times."""
    head = "cell | >as written, by the profile | >compute slower by | >so as written | >published"
    lines = []
    sources: dict[StepTime, list[str]] = defaultdict(list)
    for row in rows:
        starts = [one.from_step_time for one in row.predicted if one.from_step_time is not None]
        if not starts or row.line.step_time is None:
            continue
        pairs = row.compared(from_step_times=True)
        by_profile, written = (
            span((1e3 * one.written for one in found), MILLISECONDS) for found in (row.predicted, starts)
        )
        ours = span((one.farskip for one in starts), SPEED)
        cells = [by_profile, f"{starts[0].slower:.2f} x", written, *_compared(pairs), ours, _met(pairs)]
        lines.append([row.name, *cells])
        sources[row.line.step_time].append(row.name)
    notes = [
        f"- {', '.join(names)}: {1e3 * known.seconds:.0f} ms, {known.where}: {known.source}"
        for known, names in sources.items()
    ]
    return [*markdown(f"{head} | >AMD's placement | >ours | met", lines), "", *notes]


def _compared(pairs: list[Compared]) -> list[str]:
    return [span((pair.published for pair in pairs), SPEED), span((pair.predicted for pair in pairs), SPEED)]


def _met(pairs: Iterable[Compared]) -> str:
    return ", ".join("yes" if pair.met else "no" for pair in pairs)


# Our own measured cells


def own_cells(path: Path) -> list[Errors]:
    """Errors by group of steps, and of all steps, from a file of results."""
    errors: dict[str, list[float]] = defaultdict(list)
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        phase = cell["cell"].split("/")[1]
        for name, error in _errors(cell).items():
            errors[f"{phase}, {name}"].append(error)
            errors["all"].append(error)
    return [
        Errors(name, len(found), median(map(abs, found)), median(found), max(found, key=abs))
        for name, found in sorted(errors.items(), key=lambda pair: (pair[0] == "all", pair[0]))
    ]


def _errors(cell: Mapping[str, Any]) -> dict[str, float]:
    estimates, timings = cell["estimates"], cell["timings"]
    predicted = {
        WRITTEN: (_seconds(estimates["none"], "unscheduled"), "plain"),
        NONE: (_seconds(estimates["none"], "after"), "none"),
        FULL: (_seconds(estimates["full"], "after"), "full"),
    }
    return {name: seconds / timings[variant]["median"] - 1 for name, (seconds, variant) in predicted.items()}


def _seconds(graphs: list[Mapping[str, Any]], order: str) -> float:
    return float(sum(graph[order]["seconds"] for graph in graphs))


def own_table(found: list[Errors]) -> list[str]:
    rows = ([one.name, str(one.cells), f"{one.middle:.1%}", f"{one.bias:+.1%}", f"{one.worst:+.1%}"] for one in found)
    return markdown("step | >cells | >median error | >bias | >worst", rows)
