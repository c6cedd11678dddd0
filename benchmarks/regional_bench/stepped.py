# SPDX-License-Identifier: Apache-2.0
"""Step times and hidden communication on a limited network: the cells, and the loop that measures them.

In:    phases, ratios and effort, as `overlap.py` takes them.
Out:   each finished cell as a `Result` of `overlap_bench`.
Never: measures anything itself: `overlap_bench` does, with the variants of `cells.SELECTIONS["regional"]`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence

from harness import Network
from overlap_bench import cells, settings
from overlap_bench.cells import PREFILL, TRAINING, Cell
from overlap_bench.results import Result

PHASES = (PREFILL, TRAINING)
RATIOS = (0.5, 1.0)
SELECTION = "regional"


def grid(phases: Sequence[str] = PHASES, ratios: Sequence[float] = RATIOS) -> list[Cell]:
    """DeepSeek-V3 style on two hosts, balanced."""
    return cells.grid(cells.MODELS[:1], phases, (cells.BALANCED,), (2,), ratios)


def measure(wanted: Iterable[Cell], effort: settings.Effort, finished: Callable[[Result], None]) -> str | None:
    """Measure the cells, and hand each over as soon as it is finished.

    Returns why this was the loopback interface and not a network, if it was.
    """
    from overlap_bench.launch import run_group

    problem, profile, started = None, None, time.perf_counter()

    def log(rank: int, line: str) -> None:
        print(f"{time.perf_counter() - started:4.0f} s  {line}", file=sys.stderr, flush=True)

    for group, ratios in cells.by_group(wanted).items():
        sizes = settings.settings_of(group, effort)
        print(f"\n{settings.describe(group, sizes)}", flush=True)
        with Network(group.hosts, None, log=log) as network:
            problem = problem or network.problem
            profile = run_group(
                network, group, ratios, sizes, options={}, profile=profile, traces=None, finished=finished
            )
    return problem
