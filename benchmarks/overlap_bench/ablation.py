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

`{command}`; {machine}; {versions}. The programs are those that the search is called with for {kernels} (as {counts[0]}
programs of kernels and {counts[1]} of graphs, forward and backward apart), and for {full_size} at full width by
`farskip_compile.simulate` ({counts[2]}, as written and under FarSkip). Each was searched without one part. The table
says by how much the makespan grows in the machine model: for the worst program, and in brackets on average. A negative
figure is a gain. Then come the worst growth on a network half as slow again, for which the search leaves a margin, and
the worst growth of the peak.
"""
KEPT = """\
A part stays if it saves 1 % anywhere, or guards memory or a promise. `lower_peak`, the second search and the price of
memory keep peaks low. Coarsening halves the time of searches in large graphs where memory is scarce (2363 tasks with a
limit of 1 %: 2.1 s without it, 1.0 s with it). With the published order, the result is never slower than AMD's. A
compute weight below 1 lets what leads to a launch go first, which matters more on slower networks.
"""
REMOVED = """\
Measured in the same way on these and on `llama4/training/balanced/2/1`, and then removed, since it saved less than 1 %
everywhere:
"""


def ablation(path: Path) -> str:
    """The section."""
    if not path.exists():
        return ""
    data = json.loads(path.read_text(encoding="utf-8"))
    head = ["without", "kernels of cells", "graphs of cells", "full size", "slower network", "peak"]
    programs = data["programs"]
    intro = INTRO.format(
        **data["facts"],
        kernels=_names(programs["kernels"]),
        full_size=_names(programs["full size"]),
        counts=[len(programs[group]) for group in GROUPS],
    )
    lines = [intro, f"| {' | '.join(head)} |", "|---|" + "---:|" * 5]
    lines += [f"| {' | '.join(_row(row))} |" for row in data["rows"]]
    lines += ["", KEPT, REMOVED, *(f"- {text}" for text in data["removed"]), ""]
    return "\n".join(lines)


def _names(cases: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in dict.fromkeys(cases))


def _row(row: Mapping[str, Any]) -> Sequence[str]:
    times = ("{} ({})".format(*map(_percent, row["time"].get(group, (0.0, 0.0)))) for group in GROUPS)
    return [row["part"], *times, _percent(row["slower"]), _percent(row["peak"])]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:+.1f} %".replace("-0.0", "+0.0")
