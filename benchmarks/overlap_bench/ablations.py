# SPDX-License-Identifier: Apache-2.0
"""The sections of docs/benchmarks.md on what each pass, and each part of the scheduler's search, earns.

Contract: from the files that `overlap.py --ablation` and `schedule_ablation.py` write; nothing where there is none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import markdown

from overlap_bench.cells import ABLATED, FULL, FULL_CUT
from overlap_bench.results import Result, Store
from overlap_bench.terminal import ms

GROUPS = ("kernels", "graphs", "full size")
SEARCHED = """\
## Ablation of the scheduler's search

`{command}`; {machine}; {versions}. The programs are those that the search is called with for {kernels} (as {counts[0]}
programs of kernels and {counts[1]} of graphs, forward and backward apart), and for {full_size} at full width by
`farskip_compile.measure.simulate` ({counts[2]}, as written and under FarSkip). Each was searched without one part. The
table says by how much the makespan grows in the machine model: for the worst program, and in brackets on average. A
negative figure is a gain. Then come the worst growth on a network half as slow again, for which the search leaves a
margin, and the worst growth of the peak.
"""
KEPT = """\
A part stays if it saves 1 % anywhere, or guards memory or a promise. `lower_peak`, the second search and the price of
memory keep peaks low. Coarsening halves the time of searches in large graphs where memory is scarce (2363 tasks with a
limit of 1 %: 2.1 s without it, 1.0 s with it). Two orders are known before the search: AMD's, so that the result is
never slower than it, and for kernels one that holds little memory, which keeps the limit where Inductor's own does not.
A compute weight below 1 lets what leads to a launch go first, which matters more on slower networks.
"""
REMOVED = """\
Measured in the same way on these and on `llama4/training/balanced/2/1`, and then removed, since it saved less than 1 %
everywhere:
"""
PASSES = """\
## Ablation of passes

`{command}`; {versions}. Each variant is `full, pieces` without one pass (`disable_passes`); *longer* is the median,
over repetitions, of its step over that of `full, pieces` in the same one.
"""


def pass_ablation(path: Path) -> str:
    """What a step takes without each pass."""
    if not path.exists():
        return ""
    store = Store.load(path)
    rows = [row for result in store.ordered() for row in _without(result)]
    head = "cell | variant | >step | >longer | >hidden | >peak"
    return "\n".join([PASSES.format(**store.facts), *markdown(head, rows), "", ""])


def _without(result: Result) -> Iterator[Sequence[str]]:
    for name in (FULL_CUT, *ABLATED, FULL):
        hidden = result.hidden(name)
        yield (
            f"`{result.cell}`",
            name,
            ms(result.timings[name].median),
            _percent(result.times_as_fast(FULL_CUT, name) - 1),
            "-" if hidden is None else f"{100 * hidden:.0f} %",
            f"{result.peak_bytes[name] / 1e6:.3g} MB",
        )


def search_ablation(path: Path) -> str:
    """The section; nothing without the file."""
    if not path.exists():
        return ""
    data = json.loads(path.read_text(encoding="utf-8"))
    programs = data["programs"]
    intro = SEARCHED.format(
        **data["facts"],
        kernels=_names(programs["kernels"]),
        full_size=_names(programs["full size"]),
        counts=[len(programs[group]) for group in GROUPS],
    )
    head = "without | >kernels of cells | >graphs of cells | >full size | >slower network | >peak"
    removed = (f"- {text}" for text in data["removed"])
    return "\n".join([intro, *markdown(head, map(_part, data["rows"])), "", KEPT, REMOVED, *removed, ""])


def _names(cases: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in dict.fromkeys(cases))


def _part(row: Mapping[str, Any]) -> Sequence[str]:
    times = ("{} ({})".format(*map(_percent, row["time"].get(group, (0.0, 0.0)))) for group in GROUPS)
    return [row["part"], *times, _percent(row["slower"]), _percent(row["peak"])]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:+.1f} %".replace("-0.0", "+0.0")
