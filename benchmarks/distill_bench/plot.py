"""Draws docs/distillation.png: how far each row is above its teacher.

Contract: drawn from results alone.
"""

from __future__ import annotations

from pathlib import Path

from common import picture

from distill_bench.results import Result, Results
from distill_bench.targets import above

INK, LINE, GRID = "#1d2126", "#8a929b", "#e3e6ea"
COLORS = {"unhealed": "#d9480f", "healed": "#0b3d91", "healed-by-text": "#5b8def", "scratch": "#2b8a3e"}


def write_plot(results: Results, path: Path) -> None:
    """One column for each model."""
    models = results.models()
    with picture(path, 1, len(models), (5.4 * len(models), 4.8)) as (_, grid):
        for axes, model in zip(grid[0], models, strict=True):
            rows = results.of(model)
            teacher = rows.pop("teacher")
            labels = list(rows)[::-1]
            for place, label in enumerate(labels):
                found = rows[label]
                value = 100 * above(found, teacher)
                axes.barh(place, value, color=_color(found[0], label), height=0.66)
                seeds = [100 * above([one], teacher) for one in found]
                if len(found) > 1:
                    axes.plot(seeds, [place] * len(found), ".", color=INK, ms=4)
                where, text = (max(0.0, value, *seeds), place), f"{value:+.1f} %"
                style = {"textcoords": "offset points", "va": "center", "color": INK, "fontsize": 8}
                axes.annotate(text, where, xytext=(6, 0), **style)
            axes.set_yticks(range(len(labels)), labels, fontsize=9)
            axes.set_title(model, loc="left", fontsize=11)
            axes.set_xlabel("held-out loss above the teacher's, %")
            axes.margins(x=0.14)
            axes.axvline(0, color=LINE, linewidth=1)
            axes.grid(axis="x", color=GRID, linewidth=0.8)
            axes.spines["left"].set_visible(False)
            axes.tick_params(axis="y", length=0)


def _color(row: Result, label: str) -> str:
    return COLORS["healed-by-text" if label.startswith("healed-by-text") else row.row.kind]
