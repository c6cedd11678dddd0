# SPDX-License-Identifier: Apache-2.0
"""A prediction in the terminal.

Contract: from a `Prediction` alone, for a `rich` console of any width from 80 columns on; understandable without
colours.
"""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from farskip_compile.base.choices import Phase
from farskip_compile.measure.simulate.results import Prediction, exposed_rows
from farskip_compile.text_utils import printable

WORTH = 1.02
"""The speed-up below which a conversion is called not worth it."""
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
    """Return a prediction as a renderable: the orders, the exposed collectives and a verdict."""
    head = Text(printable(heading(found), lines=True), style="bold")
    return Group(head, Text(), steps(found), Text(), exposed(found), Text(), Text(verdict(found)))


def heading(found: Prediction) -> str:
    """Return three lines: the work, the cluster, the model of a rank."""
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
    """Return a table with one line for each order."""
    first = STEPS[Phase(found.scenario.phase)]
    table = _table(first, "seconds", "speed-up", "communication", "exposed", "hidden", "peak")
    for key, step in found.orders.items():
        table.add_row(
            NAMES.get(key, key),
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
    """Return a table of the collectives that are still exposed under FarSkip in our order, with reasons."""
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
    """Return a sentence that says whether a conversion is worth it."""
    part = found.written.communication / found.written.seconds
    if found.speedup < WORTH:
        return (
            f"Not worth it here: {found.speedup:.3f} x. {part:.1%} of the step as written is communication, and a "
            "forecast like this can't distinguish less than 2 % from nothing."
        )
    best = max(found.also, key=lambda name: -found.also[name].seconds, default="")
    if best and found.also[best].seconds < found.farskip.seconds:
        return (
            f"FarSkip brings {found.speedup:.3f} x here, and overlapping alone {found.scheduled_speedup:.3f} x; most, "
            f"{found.written.seconds / found.also[best].seconds:.3f} x, brings {best}."
        )
    return (
        f"FarSkip brings {found.speedup:.3f} x here, and overlapping alone {found.scheduled_speedup:.3f} x; "
        f"{found.speedup / found.scheduled_speedup:.3f} x is what the conversion is for."
    )


def duration(seconds: float) -> str:
    """Return `1.23 s`, `45.6 ms` or `789 us`."""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{1e3 * seconds:.1f} ms" if seconds >= 1e-3 else f"{1e6 * max(seconds, 0):.0f} us"
