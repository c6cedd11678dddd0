# SPDX-License-Identifier: Apache-2.0
"""Draws the results: for each phase, hidden communication and step time over the floor, by ratio and variant.

Contract: drawn from the file of results alone. The floor is the larger of compute and communication. A mark is the
median over the measured cells of a phase and ratio (models, routings, hosts), and its line goes from the lowest to the
highest. Needs matplotlib.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import picture

from overlap_bench.cells import CHUNKED, EAGER, FULL, FULL_CUT, MICRO, NONE, NONE_CUT, PASSES, PHASES, PLAIN
from overlap_bench.results import Result
from overlap_bench.targets import CUT_HIDDEN, HOSTS, OVER_FLOOR

LOOKS = {
    PLAIN: ("#8a929b", "o"),
    PASSES: ("#b5651d", "D"),
    EAGER: ("#8f4fbf", "^"),
    CHUNKED: ("#c9a227", "s"),
    MICRO: ("#4b7f3f", "v"),
    NONE: ("#5aa9e6", "P"),
    NONE_CUT: ("#2a9d8f", "X"),
    FULL: ("#0b3d91", "*"),
    FULL_CUT: ("#d1495b", "p"),
}
"""Variants differ in more than colour."""
WIDTH = 0.82
"""Width of the marks of one ratio, in steps between ratios."""


def write_plot(results: Sequence[Result], path: Path) -> None:
    """One picture as PNG; a column for each phase that was measured."""
    phases = [phase for phase in PHASES if any(result.at.group.phase == phase for result in results)]
    with picture(path, 2, len(phases), (2.2 + 4.3 * len(phases), 7.8), _setting(results)) as (figure, axes):
        for column, phase in enumerate(phases):
            members = [result for result in results if result.at.group.phase == phase]
            hidden, over = axes[0][column], axes[1][column]
            _marks(hidden, members, lambda result, name: result.hidden(name), 100)
            _marks(over, members, lambda result, name: result.timings[name].median / result.floor, 1)
            hidden.set_ylim(-4, 104)
            heading = f"{phase} ({len(members)} cell{'s' * (len(members) != 1)})"
            hidden.set_title(f"{heading}\n{_batch(members)}", fontsize=11)
            over.set_ylim(bottom=min(0.95, over.get_ylim()[0]))
            over.axhline(1.0, color="#1d2126", linewidth=1)
            over.set_xlabel("communication / compute (ratio of seconds)")
            ratios = sorted({result.at.ratio for result in members})
            _targets(hidden, phase, ratios, CUT_HIDDEN, 100)
            _targets(over, phase, ratios, OVER_FLOOR, 1)
            if column == 0:
                hidden.set_ylabel("communication hidden, %")
                over.set_ylabel("step time / max(compute, communication)")
        pairs = (pair for axis in axes.flat for pair in zip(*axis.get_legend_handles_labels(), strict=True))
        shown = {label: handle for handle, label in pairs}
        place = {"loc": "outside lower center", "ncols": 3 * len(phases)}
        figure.legend(shown.values(), shown.keys(), **place, frameon=False, fontsize=9)


def _setting(results: Sequence[Result]) -> str:
    """Device and network, as the cells say."""
    hosts = " or ".join(str(number) for number in sorted({result.at.group.hosts for result in results}))
    networks = {re.sub(r"^\d+ hosts \((.*?)\).*", r"\1", result.network) for result in results}
    machines = "; ".join(sorted({result.machine for result in results}))
    return f"CPU, float32: {machines}; {hosts} hosts ({', '.join(sorted(networks))}), gloo"


def _batch(results: Sequence[Result]) -> str:
    """What a step has to do on each host, as the cells say: `2 sequences of 96 to 512 tokens on each host`."""
    found = [match for result in results if (match := re.search(r"(\d+ sequences of )(\d+)( tokens)?", result.about))]
    if not found:
        return ""
    tokens = sorted({int(match[2]) for match in found})
    span = f"{tokens[0]}" if len(tokens) == 1 else f"{tokens[0]} to {tokens[-1]}"
    new = "a new token for " if "a new token" in results[0].about else ""
    return f"{new}{found[0][1]}{span} tokens on each host"


def _marks(axis: Any, results: Sequence[Result], figure: Callable[[Result, str], float | None], scale: int) -> None:
    ratios = sorted({result.at.ratio for result in results})
    names = [name for name in LOOKS if any(name in result.exposed for result in results)]
    for place, name in enumerate(names):
        offset = WIDTH * ((place + 0.5) / len(names) - 0.5)
        label = name
        for step, ratio in enumerate(ratios):
            found = [figure(result, name) for result in results if result.at.ratio == ratio and name in result.exposed]
            values = [scale * value for value in found if value is not None]
            if not values:
                continue
            x = step + offset
            axis.plot([x, x], [min(values), max(values)], color=LOOKS[name][0], linewidth=2.2, alpha=0.45)
            size = 130 if name == FULL_CUT else 52
            axis.scatter(
                [x],
                [statistics.median(values)],
                color=LOOKS[name][0],
                marker=LOOKS[name][1],
                s=size,
                label=label,
                zorder=3,
            )
            label = "_"  # one entry in the legend
    for step in range(len(ratios) - 1):
        axis.axvline(step + 0.5, color="#e3e5e8", linewidth=1)
    axis.set_xticks(range(len(ratios)), [f"{ratio:g}" for ratio in ratios])
    axis.set_xlim(-0.5, len(ratios) - 0.5)
    axis.grid(axis="y", color="#eef0f2")


def _targets(
    axis: Any, phase: str, ratios: Sequence[float], wanted: Mapping[tuple[str, float], float], scale: int
) -> None:
    """A line at each ratio that has a target."""
    label = f"target for {FULL_CUT}, {HOSTS} hosts"
    for step, ratio in enumerate(ratios):
        if (phase, ratio) in wanted:
            value = scale * wanted[phase, ratio]
            axis.plot(
                [step - 0.5, step + 0.5], [value] * 2, color="#c0392b", linewidth=1.4, linestyle="--", label=label
            )
            label = "_"
