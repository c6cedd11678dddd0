"""A prediction in the terminal, as a picture, and as a Chrome trace, for ui.perfetto.dev or chrome://tracing.

Contract: from a `Prediction` alone. The text is for a `rich` console of any width from 80 columns on, understandable
without colours. The picture (PNG) shows a part of the step in two orders, and what the whole step is made of. The trace
has one process for each order, with a lane for compute and one for each channel, and the phases of a step one after the
other; views and whatever else takes no time are left out.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from farskip_compile.errors import ConfigError
from farskip_compile.passes.schedule.program import Role
from farskip_compile.simulate.results import Prediction, StepResult, exposed_rows
from farskip_compile.simulate.scenario import Phase

WORTH = 1.02
"""Speed-up below which a conversion is called not worth it."""
NAMES = {
    "written": "as written",
    "scheduled": "overlapped",
    "published": "FarSkip, AMD's order",
    "farskip": "FarSkip, our order",
}
STEPS = {Phase.PREFILL: "time to first token", Phase.DECODE: "decode step", Phase.TRAIN: "forward and backward"}
OPERATORS = {"all_to_all_single": "all-to-all", "all_reduce": "all-reduce", "reduce_scatter_tensor": "reduce-scatter"}
TERMS = {"a": "attention", "m": "dense", "s": "shared", "r": "routed"}


def prediction_text(found: Prediction) -> RenderableType:
    """All that a user needs for a decision."""
    head = Text(heading(found), style="bold")
    return Group(head, Text(), steps(found), Text(), exposed(found), Text(), Text(verdict(found)))


def heading(found: Prediction) -> str:
    """Three lines: the work, the cluster, the model of a rank."""
    s = found.scenario
    where = f"{s.ranks} x {s.profile.name}, ep {s.ep}, tp {s.tp}, {s.exchanges}, {s.products}"
    work = f"{s.batch} sequences of {s.prompt} tokens" + (" in the cache" if s.phase is Phase.DECODE else "")
    skewed = f", fullest rank {found.imbalance:.2f} x the mean" if found.imbalance > 1.005 else ""
    why = "as measured" if s.measured is not None else "as given"
    slower = f"; compute {found.slower:.2f} x what the profile says, {why}" if found.slower != 1.0 else ""
    return (
        f"{s.architecture.name}, {s.phase}: {work}\n{where}{skewed}{slower}\n"
        f"{found.parameters / 1e9:.1f} B parameters on a rank; {found.rewired}"
    )


def steps(found: Prediction) -> Table:
    """A line for each order."""
    first = STEPS[Phase(found.scenario.phase)]
    table = _table(first, "seconds", "speed-up", "communication", "exposed", "hidden", "peak")
    for key, name in NAMES.items():
        step: StepResult = getattr(found, key)
        table.add_row(
            name,
            duration(step.seconds),
            f"{found.written.seconds / step.seconds:.3f} x",
            duration(step.communication),
            duration(step.exposed),
            f"{max(step.hidden, 0):.1%}",
            f"{step.peak_bytes / 1e9:.1f} GB",
        )
    return table


def _table(first: str, *numbers: str) -> Table:
    table = Table(first, box=None, pad_edge=False)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def exposed(found: Prediction) -> Table:
    """What is still exposed under FarSkip in our order, and why."""
    table = _table(NAMES["farskip"], "number", "on the wire", "exposed")
    table.add_column("why", overflow="fold")
    for phase in found.farskip.phases:
        for row in exposed_rows(phase):
            terms = " + ".join(TERMS.get(kind, kind) for kind in row.terms)
            table.add_row(
                f"{phase.phase} {OPERATORS.get(row.operator, row.operator)} of {terms}".replace("inference ", ""),
                str(row.count),
                duration(row.seconds),
                duration(row.exposed),
                f"{row.reason}: {row.example}" if row.reason else "",
            )
    return table


def verdict(found: Prediction) -> str:
    """One sentence."""
    part = found.written.communication / found.written.seconds
    if found.speedup < WORTH:
        return (
            f"Not worth it here: {found.speedup:.3f} x. {part:.1%} of the step as written is communication, and a "
            "forecast like this can't distinguish less than 2 % from nothing."
        )
    return (
        f"FarSkip brings {found.speedup:.3f} x here, and overlapping alone {found.scheduled_speedup:.3f} x; "
        f"{found.speedup / found.scheduled_speedup:.3f} x is what the conversion is for."
    )


def duration(seconds: float) -> str:
    """`1.23 s`, `45.6 ms`, `789 us`."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{1e3 * seconds:.1f} ms" if seconds >= 1e-3 else f"{1e6 * max(seconds, 0):.0f} us"


INK, BUSY, WIRE, IDLE, GRID = "#1d2126", "#9db8d9", "#0b3d91", "#d9480f", "#e3e6ea"
LAYERS = 2.5
"""How many the detail shows."""
SHORTEST = 1e-9
"""Seconds below which a task is left out of the trace."""


def draw_prediction(found: Prediction, path: Path) -> None:
    """Draw `found` into `path`.

    Raises:
        ConfigError: there is no matplotlib, or the file can't be written.
    """
    try:
        import matplotlib
    except ImportError:
        raise ConfigError("a picture needs matplotlib", way_out="pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (detail, bars) = pyplot.subplots(2, 1, figsize=(9.6, 6.2), layout="constrained", height_ratios=(1.1, 1))
    _detail(detail, found)
    _bars(bars, found)
    figure.suptitle(heading(found).rpartition("\n")[0], x=0.01, ha="left", fontsize=11, color=INK)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise ConfigError(f"can't write {path}: {error.strerror}") from None
    finally:
        pyplot.close(figure)


def _detail(axes: Any, found: Prediction) -> None:
    """The middle of the first phase: compute and network, as written and under FarSkip."""
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
            first = last - task.seconds if task.role is Role.LAUNCH else phase.timeline.start[index]
            first, last = max(first, start), min(last, end)
            if last <= first:
                continue
            lane, colour = {Role.COMPUTE: (0.42, BUSY), Role.WAIT: (0.42, IDLE), Role.LAUNCH: (0.0, WIRE)}[task.role]
            box = [(1e3 * (first - start), 1e3 * (last - first))]
            axes.broken_barh(box, (1.1 * (1 - place) + lane, 0.36), color=colour, linewidth=0)
        axes.text(-0.01, 1.1 * (1 - place) + 0.39, name, transform=left, ha="right", va="center", fontsize=9)
    for label, colour in (("compute", BUSY), ("collectives", WIRE), ("idle", IDLE)):
        axes.plot([], [], color=colour, linewidth=8, label=label)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=3, frameon=False, fontsize=9)
    axes.set_yticks([])
    axes.set_ylim(-0.08, 2.0)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"milliseconds, from the middle of the {found.written.phases[0].phase}", fontsize=9)
    _plain(axes)


def _bars(axes: Any, found: Prediction) -> None:
    """Compute and exposed communication of each order."""
    heights = range(len(NAMES), 0, -1)
    for height, key in zip(heights, NAMES, strict=True):
        step = getattr(found, key)
        busy = step.seconds - step.exposed
        axes.barh(height, 1e3 * busy, color=BUSY, height=0.62)
        axes.barh(height, 1e3 * step.exposed, left=1e3 * busy, color=IDLE, height=0.62)
        note = f" {1e3 * step.seconds:.4g} ms, {found.written.seconds / step.seconds:.3f} x"
        axes.text(1e3 * step.seconds, height, note, va="center", fontsize=9, color=INK)
    axes.set_yticks(heights, list(NAMES.values()), fontsize=9)
    axes.set_xlim(0, 1.22e3 * max(getattr(found, key).seconds for key in NAMES))
    axes.set_xlabel("milliseconds of the whole step: compute, and communication that is exposed", fontsize=9)
    _plain(axes)


def _plain(axes: Any) -> None:
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=9)


def write_trace(found: Prediction, path: Path) -> None:
    """Write all orders of a prediction to `path`, compressed if it ends in `.gz`.

    Raises:
        ConfigError: it can't be written.
    """
    events = [event for place, key in enumerate(NAMES) for event in _events(place, NAMES[key], getattr(found, key))]
    text = json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}).encode()
    try:
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    except OSError as error:
        raise ConfigError(f"can't write {path}: {error.strerror}") from None


def _events(process: int, name: str, step: StepResult) -> Iterator[dict[str, Any]]:
    yield _named("process_name", process, 0, name)
    yield _named("thread_name", process, 0, "compute")
    lanes: dict[str, int] = {}
    begin = 0.0
    for phase in step.phases:
        for index in phase.order:
            task, start, end = phase.program.tasks[index], phase.timeline.start[index], phase.timeline.end[index]
            if end - start < SHORTEST:
                continue
            lane = lanes.setdefault(task.channel, len(lanes) + 1) if task.role is Role.LAUNCH else 0
            yield {
                "ph": "X",
                "pid": process,
                "tid": lane,
                "name": "wait" if task.role is Role.WAIT else task.name,
                "cat": str(task.role),
                "ts": 1e6 * (begin + start),
                "dur": 1e6 * (end - start),
                "args": {"phase": phase.phase, "terms": " ".join(task.terms)},
            }
        begin += phase.timeline.makespan
    for channel, lane in lanes.items():
        yield _named("thread_name", process, lane, f"collectives of group {channel}")


def _named(what: str, process: int, lane: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": process, "tid": lane, "name": what, "args": {"name": name}}
