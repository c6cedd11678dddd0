"""The comparison as text: tables for a page, and the targets.

Contract: from rows alone. A target that is missed says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from paper_bench.own_cells import LIMIT, Errors
from paper_bench.predicted import WITHIN, Row
from paper_bench.published import StepTime

PART = 0.8
"""Of the published speed-ups that are to be predicted."""
SAME = 1e-9


@dataclass(frozen=True)
class Target:
    """What was to hold, and whether it does."""

    text: str
    met: bool
    found: str


def targets(rows: list[Row], own: list[Errors]) -> list[Target]:
    """Of this comparison."""
    every = next(one for one in own if one.name == "all")
    pairs = [pair for row in rows for pair in row.compared()]
    met = sum(pair.met for pair in pairs)
    worst = max(rows, key=lambda row: max(one.published - one.farskip for one in row.predicted))
    behind = max(one.published - one.farskip for one in worst.predicted)
    return [
        Target(
            f"speed-ups within {100 * WITHIN:g} percentage points in {PART:.0%} of the cells, AMD's placement",
            met >= PART * len(pairs),
            f"{met} of {len(pairs)}",
        ),
        Target(
            "our order never behind AMD's placement",
            behind <= SAME,
            "nowhere" if behind <= SAME else f"{worst.name}: {100 * behind:.2f} points behind",
        ),
        Target(
            f"median error against our own measured cells under {LIMIT:.0%}",
            every.middle < LIMIT,
            f"{every.middle:.1%} of {every.cells} steps",
        ),
    ]


def speed_table(rows: list[Row]) -> list[str]:
    """Published and predicted speed-ups, as Markdown."""
    lines = [
        "| cell | published | predicted, AMD's placement | ours | overlapped only | met | compute slower by |",
        "|---|---:|---:|---:|---:|---|---:|",
    ]
    for row in rows:
        pairs = row.compared()
        ours = sorted(one.farskip for one in row.predicted)
        alone = sorted(one.scheduled for one in row.predicted)
        ends = sorted(row.predicted, key=lambda one: one.published)
        compared = [ends[0]] if len(pairs) == 1 else [ends[0], ends[-1]]
        slower = [one.slower(pair.published) for one, pair in zip(compared, pairs, strict=True)]
        lines.append(
            f"| {row.name} | {_range([pair.published for pair in pairs])} | "
            f"{_range([pair.predicted for pair in pairs])} | {_range(ours)} | {_range(alone)} | "
            f"{', '.join('yes' if pair.met else 'no' for pair in pairs)} | "
            f"{' to '.join(f'{one:.1f} x' for one in sorted(set(slower)))} |"
        )
    return lines


def overlap_table(rows: list[Row]) -> list[str]:
    """Published and predicted parts that are hidden, as Markdown."""
    lines = ["| cell | | published | predicted, AMD's placement | ours |", "|---|---|---:|---:|---:|"]
    for row in rows:
        for name, published in row.line.overlap.items():
            found = [one.hidden.get(name, one.hidden["total"]) for one in row.predicted]
            ours = _percent([one.hidden_ours for one in row.predicted]) if name == "total" else ""
            lines.append(f"| {row.name} | {name} | {published:.1%} | {_percent(found)} | {ours} |")
    return lines


def time_table(rows: list[Row]) -> list[str]:
    """What the speed-ups are made of, as Markdown."""
    lines = [
        "| cell | tokens of a sequence | as written | communication | exposed, AMD's | exposed, ours | took |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        for one in row.predicted:
            lines.append(
                f"| {row.name} | {one.prompt} | {1e3 * one.written:.0f} ms | {1e3 * one.communication:.0f} ms | "
                f"{1e3 * one.exposed[0]:.1f} ms | {1e3 * one.exposed[1]:.1f} ms | {one.took:.0f} s |"
            )
    return lines


def step_time_table(rows: list[Row]) -> list[str]:
    """Predictions that start from published times, as Markdown."""
    lines = [
        "| cell | as written, by the profile | compute slower by | so as written | published | AMD's placement | ours "
        "| met |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    sources: dict[StepTime, list[str]] = {}
    for row in rows:
        starts = [one.from_step_time for one in row.predicted if one.from_step_time is not None]
        if not starts or row.line.step_time is None:
            continue
        pairs = row.compared(from_step_times=True)
        met = ", ".join("yes" if pair.met else "no" for pair in pairs)
        lines.append(
            f"| {row.name} | {_milliseconds([one.written for one in row.predicted])} | {starts[0].slower:.2f} x | "
            f"{_milliseconds([one.written for one in starts])} | {_range([pair.published for pair in pairs])} | "
            f"{_range([pair.predicted for pair in pairs])} | {_range([one.farskip for one in starts])} | {met} |"
        )
        sources.setdefault(row.line.step_time, []).append(row.name)
    notes = []
    for known, names in sources.items():
        notes.append(f"- {', '.join(names)}: {1e3 * known.seconds:.0f} ms, {known.where}: {known.source}")
    return [*lines, "", *notes]


def _milliseconds(values: list[float]) -> str:
    low, high = f"{1e3 * min(values):.0f} ms", f"{1e3 * max(values):.0f} ms"
    return low if low == high else f"{low} to {high}"


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.3f} x", f"{max(values):.3f} x"
    return low if low == high else f"{low} to {high}"


def _percent(values: list[float]) -> str:
    low, high = f"{min(values):.1%}", f"{max(values):.1%}"
    return low if low == high else f"{low} to {high}"
