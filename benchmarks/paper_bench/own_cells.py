"""The measured cells of `overlap.py` next to what the same event simulation predicted for them.

In:    docs/benchmarks.json: for each cell the measured medians, and the timelines that the scheduler expected of its
       kernels, by a profile calibrated on that machine.
Out:   errors of predicted steps, by phase and variant.
Never: measures anything, or leaves out a measured cell.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from common import markdown

LIMIT = 0.15
"""Upper limit on the median error."""
WRITTEN, NONE, FULL = "as written", "overlapped only", "FarSkip"


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
