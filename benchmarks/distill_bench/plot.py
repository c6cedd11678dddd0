# SPDX-License-Identifier: Apache-2.0
"""Draws docs/distillation.png: how much of the KL damage is repaired, and what is left of the loss, over tokens.

Contract: everything comes from the file of results. Points are teachers, lines go through their means.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import picture

from distill_bench.page import curve
from distill_bench.results import Result, Results
from distill_bench.targets import Rows

LINE, GRID = "#8a929b", "#e3e6ea"
COLORS = {"paper": "#5b8def", "fold+paper": "#0b3d91", "best": "#2b8a3e", "control": "#8a929b"}
FOLDED = "#d9480f"


def write_plot(results: Results, path: Path) -> None:
    """One column for each model and corpus."""
    settings = results.settings()
    title = f"Healing on one CPU process, {results.facts.get('machine', 'machine not known')}; points are teachers"
    with picture(path, 2, len(settings), (3.9 * len(settings) + 0.6, 7.2), title) as (_, grid):
        for column, setting in enumerate(settings):
            rows = results.of(setting)
            above, below = grid[0][column], grid[1][column]
            above.set_title(", ".join(setting), loc="left", fontsize=11)
            _lines(above, rows, ("paper", "fold+paper", "best"), lambda one, rows=rows: _repaired(one, rows))
            _lines(below, rows, tuple(COLORS), lambda one, rows=rows: _gap(one, rows))
            below.axhline(0, color=LINE, linewidth=1)
            below.set_xlabel("tokens healed with, % of the teacher's")
            if not column:
                above.set_ylabel("KL damage repaired, %")
                below.set_ylabel("held-out loss above the teacher's, %")
        for axes in (one for one in grid.flat if one.lines):
            axes.legend(fontsize=8, frameon=False)


def _lines(axes: Any, rows: Rows, names: Sequence[str], value: Callable[[Result], float]) -> None:
    teachers = _by_seed(rows["teacher"])

    def at(one: Result) -> float:
        return 100 * one.tokens / teachers[one.row.seed].tokens

    for name in names:
        parts = curve(rows, name)
        if not parts:
            continue
        means = [(statistics.fmean(map(at, some)), statistics.fmean(map(value, some))) for some in parts]
        axes.plot(*zip(*means, strict=True), "-", color=COLORS[name], label=name, lw=1.5)
        every = [(at(one), value(one)) for some in parts for one in some]
        axes.plot(*zip(*every, strict=True), ".", color=COLORS[name], ms=5)
    if folded := rows.get("folded-full"):
        every = [(at(one), value(one)) for one in folded]
        axes.plot(*zip(*every, strict=True), "x", color=FOLDED, label="fold alone", ms=5)
    axes.set_xscale("log")
    ticks = sorted({round(at(one), 1) for name in names for some in curve(rows, name) for one in some[:1]})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(color=GRID, linewidth=0.8)


def _repaired(one: Result, rows: Rows) -> float:
    unhealed = _by_seed(rows["unhealed-full"])[one.row.seed]
    return 100 * (1 - one.judged["held_out"].kl / unhealed.judged["held_out"].kl)


def _gap(one: Result, rows: Rows) -> float:
    teacher = _by_seed(rows["teacher"])[one.row.seed]
    return 100 * (one.judged["held_out"].loss / teacher.judged["held_out"].loss - 1)


def _by_seed(rows: Sequence[Result]) -> dict[int, Result]:
    return {one.row.seed: one for one in rows}
