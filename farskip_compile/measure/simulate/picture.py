# SPDX-License-Identifier: Apache-2.0
"""A prediction as a picture: a part of the step in two orders, and what the whole step is made of.

Contract: from a `Prediction` alone, as a PNG. The title says model, phase, batch and hardware.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from farskip_compile.base.extras import need
from farskip_compile.errors import ConfigError
from farskip_compile.measure.simulate.results import Prediction
from farskip_compile.measure.simulate.text import NAMES, heading
from farskip_compile.passes.schedule.program import TaskRole
from farskip_compile.text_utils import printable

INK, BUSY, WIRE, IDLE, GRID = "#1d2126", "#9db8d9", "#0b3d91", "#d9480f", "#e3e6ea"
LAYERS = 2.5
"""The number of layers in the detail."""


def draw_prediction(found: Prediction, path: Path) -> None:
    """Draw `found` into `path`.

    Raises:
        ConfigError: the file can't be written.
        MissingPackageError: matplotlib is not installed.
    """
    need("a picture", "matplotlib")
    from matplotlib.figure import Figure  # without pyplot, whose backend is a notebook's own

    figure = Figure(figsize=(9.6, 6.2), layout="constrained")
    detail, bars = figure.subplots(2, 1, height_ratios=(1.1, 1))
    _detail(detail, found)
    _bars(bars, found)
    title = printable(heading(found).rpartition("\n")[0], lines=True)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK, parse_math=False)  # a `$` is a `$`
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise ConfigError(f"can't write {path}: {error.strerror}") from None
    except ValueError as error:  # the suffix
        raise ConfigError(f"can't write {path}: {error}") from None


def _detail(axes: Any, found: Prediction) -> None:
    """Draw compute and network in the middle of the first phase, as written and under FarSkip."""
    from matplotlib.transforms import blended_transform_factory

    left = blended_transform_factory(axes.transAxes, axes.transData)
    rows = (("as written", found.written.phases[0]), ("FarSkip,\nour order", found.farskip.phases[0]))
    for place, (name, phase) in enumerate(rows):
        layers = len({term[1:] for task in phase.program.tasks for term in task.terms})
        span = LAYERS * rows[0][1].timeline.makespan / max(layers, 1)
        start = max(0.0, phase.timeline.makespan / 2 - span / 2)
        end = start + span
        for index in phase.order:
            task = phase.program.tasks[index]
            last = phase.timeline.end[index]
            first = last - task.seconds if task.role is TaskRole.LAUNCH else phase.timeline.start[index]
            first, last = max(first, start), min(last, end)
            if last <= first:
                continue
            lane, colour = {TaskRole.COMPUTE: (0.42, BUSY), TaskRole.WAIT: (0.42, IDLE), TaskRole.LAUNCH: (0.0, WIRE)}[
                task.role
            ]
            box = [(1e3 * (first - start), 1e3 * (last - first))]
            axes.broken_barh(box, (1.1 * (1 - place) + lane, 0.36), color=colour, linewidth=0)
        axes.text(-0.01, 1.1 * (1 - place) + 0.39, name, transform=left, ha="right", va="center", fontsize=9)
    _legend(axes, {"compute": BUSY, "collectives": WIRE, "idle": IDLE})
    axes.set_yticks([])
    axes.set_ylim(-0.08, 2.0)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"milliseconds, from the middle of the {found.written.phases[0].phase}", fontsize=9)
    _plain(axes)


def _bars(axes: Any, found: Prediction) -> None:
    """Draw compute and exposed communication of each order."""
    heights = range(len(found.orders), 0, -1)
    for height, step in zip(heights, found.orders.values(), strict=True):
        busy = step.seconds - step.exposed
        axes.barh(height, 1e3 * busy, color=BUSY, height=0.62)
        axes.barh(height, 1e3 * step.exposed, left=1e3 * busy, color=IDLE, height=0.62)
        note = f" {1e3 * step.seconds:.4g} ms, {found.written.seconds / step.seconds:.3f} x"
        axes.text(1e3 * step.seconds, height, note, va="center", fontsize=9, color=INK)
    axes.set_yticks(heights, [NAMES.get(key, key) for key in found.orders], fontsize=9)
    axes.set_xlim(0, 1.22e3 * max(step.seconds for step in found.orders.values()))
    axes.set_xlabel("milliseconds of the whole step, and speed-up over the step as written", fontsize=9)
    _legend(axes, {"compute": BUSY, "exposed communication": IDLE})
    _plain(axes)


def _legend(axes: Any, colours: Mapping[str, str]) -> None:
    """Draw the legend above the axes, which are full."""
    for label, colour in colours.items():
        axes.plot([], [], color=colour, linewidth=8, label=label)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=len(colours), frameon=False, fontsize=9)


def _plain(axes: Any) -> None:
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=9)
