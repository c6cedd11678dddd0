"""The section of docs/benchmarks.md on what each part of the scheduler's search earns.

In:    the file of `benchmarks/schedule_ablation.py`.
Out:   Markdown; nothing without the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

GROUPS = ("kernels", "graphs", "full size")
NAME = "schedule_ablation.json"
INTRO = """\
## Ablation of the scheduler's search

`{command}`; {machine}; {versions}. The programs are those that the search was called with for {cells} ({kernels} as
kernels, {graphs} as graphs, forward and backward apart) and for {scenarios} at full width by `farskip_compile.simulate`
({full}, as written and under FarSkip). For each, the search was run as it is and without one part. The table says by
how much the makespan grows in the machine model: for the worst program, and in the mean in brackets. A negative figure
is an order that is faster without the part. Then come the worst growth on a network half as slow again, for which the
search leaves a margin; the worst growth of the peak; and the processor time of all searches against that of the whole.
"""
KEPT = """\
A part stays if it saves 1 % anywhere, or guards memory or a promise: windows and `lower_peak` find an order where the
limit on memory is tight, the second search and the price keep peaks low, coarsening bounds the time of compiling, and
with the published order the result is never slower than AMD's.
"""
REMOVED = """\
These parts were measured in the same way and then removed, since each saved less than 1 % everywhere:
"""


def ablation(path: Path) -> str:
    """The section."""
    if not path.exists():
        return ""
    data = json.loads(path.read_text(encoding="utf-8"))
    head = ["without", "kernels of cells", "graphs of cells", "full size", "slower network", "peak", "CPU time"]
    lines = [INTRO.format(**data["facts"], **data["programs"]), f"| {' | '.join(head)} |", "|---|" + "---:|" * 6]
    lines += [f"| {' | '.join(_row(row))} |" for row in data["rows"]]
    lines += ["", KEPT, REMOVED, *(f"- {text}" for text in data["removed"]), ""]
    return "\n".join(lines)


def _row(row: Mapping[str, Any]) -> Sequence[str]:
    times = ("{} ({})".format(*map(_percent, row["time"].get(group, (0.0, 0.0)))) for group in GROUPS)
    return [row["part"], *times, _percent(row["slower"]), _percent(row["peak"]), f"{row['cpu']:.1f} x"]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:+.1f} %".replace("-0.0", "+0.0")
