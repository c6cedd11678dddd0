"""The cells of `overlap.py` that have been measured, next to what the same event simulation predicted for them.

In:    docs/benchmarks.json: for each cell the medians that were measured, and the timelines that the scheduler expected
       of its kernels, from a profile that was calibrated on that machine.
Out:   errors of predicted steps, by phase and variant.
Never: measures anything, or leaves out a cell that was measured.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

LIMIT = 0.15
"""That the median error is to stay under."""
WRITTEN, NONE, FULL = "as written", "overlapped only", "FarSkip"


@dataclass(frozen=True)
class Errors:
    """Of one group of steps: predicted over measured, less 1."""

    name: str
    cells: int
    middle: float
    """Median of their sizes."""
    bias: float
    """Median."""
    worst: float


def own_cells(path: Path) -> list[Errors]:
    """Groups of steps, and all of them, from a file of results."""
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
    """As Markdown."""
    lines = ["| step | cells | median error | bias | worst |", "|---|---:|---:|---:|---:|"]
    for one in found:
        lines.append(f"| {one.name} | {one.cells} | {one.middle:.1%} | {one.bias:+.1%} | {one.worst:+.1%} |")
    return lines
