# SPDX-License-Identifier: Apache-2.0
"""AMD's published figures for FarSkip, next to predictions for the same settings.

Usage: python benchmarks/paper_tables.py [--quick] [--cells CELL ...] [--workers N] [--table]

For each published cell (`paper_bench/published.py`) the model at full size is captured, rewired and simulated on the
profile of the hardware, by AMD's placement of launches and waits and in our order (`farskip_compile.measure.simulate`).
The profiles are those that the package ships: data sheets and public measurements, each with its source. Nothing is
fitted to a cell. Two other systems that overlap the exchanges of an unchanged model (`paper_bench/others.py`) stand
beside them. How far an unknown engine puts a prediction off is shown in two ways: the factor by which compute would
have to take longer for the prediction to match what was published, and, where somebody else published a step time, a
prediction that starts from it.

`--quick` predicts only the first 8 layers of each model: in minutes, and with other numbers. Results go to
docs/paper_tables.json and into docs/paper_tables.md between its marks; `--table` rewrites the page from the file. The
page also shows all measured cells of overlap.py (docs/benchmarks.json): their medians, next to the timelines that the
scheduler expected of their kernels, by a profile calibrated on that machine. The last lines are the targets. Exit
status: 0 all met, 1 not, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from common import DOCS, Target, decode, facts, markdown, replace, span, write_between_marks
from paper_bench.others import OtherRow, others_table, predict_others
from paper_bench.predicted import WITHIN, Compared, Row, predict_all
from paper_bench.published import PUBLISHED, StepTime

JSON, PAGE, OWN = DOCS / "paper_tables.json", DOCS / "paper_tables.md", DOCS / "benchmarks.json"
QUICK_LAYERS = 8
FRACTION = 0.8
"""Fraction of the published speed-ups that are to be predicted."""
SAME = 1e-9
LIMIT = 0.15
"""Upper limit on the median error of our own cells."""
WRITTEN, NONE, FULL = "as written", "overlapped only", "FarSkip"
SPEED, PERCENT, MILLISECONDS = "{:.3f} x", "{:.1%}", "{:.0f} ms"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [one.name for one in PUBLISHED]
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_LAYERS} layers of each model; writes no page")
    parser.add_argument("--cells", nargs="+", choices=names, default=names, metavar="CELL", help=", ".join(names))
    parser.add_argument("--others", action="store_true", help="predict only the other systems' figures anew")
    parser.add_argument("--workers", type=int, default=2, help="predictions at a time")
    parser.add_argument("--table", action="store_true", help="only write the page, from existing results")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    kept = json.loads(JSON.read_text()) if options.table or options.others else {}
    others = decode(list[OtherRow], kept.get("others", []))
    if options.others or not (options.table or options.quick):
        others = predict_others(options.workers)
    if options.table or options.others:
        rows, about = decode(list[Row], kept["rows"]), kept["about"]
    else:
        about, start = facts(), time.perf_counter()
        rows = predict_all(options.cells, QUICK_LAYERS if options.quick else None, options.workers)
        about["took"] = f"{time.perf_counter() - start:.0f} s"
    whole = bool(kept) or (not options.quick and len(options.cells) == len(PUBLISHED))
    text = body(rows, others, about)
    if whole:
        found = {"rows": [asdict(row) for row in rows], "others": [asdict(row) for row in others]}
        replace(JSON, json.dumps({"about": about, **found}, indent=1) + "\n")
        write_between_marks(PAGE, "benchmarks/paper_tables.py", [text])
    print(text)
    return 0 if all(one.met for one in targets(rows, own_cells(OWN))) else 1


def body(rows: list[Row], others: list[OtherRow], about: dict[str, str]) -> str:
    lines = ["### Speed-ups", "", *speed_table(rows), "", "### Communication hidden", "", *overlap_table(rows), ""]
    if any(one.from_step_time for row in rows for one in row.predicted):
        lines += ["### From published times of the step as written", "", *step_time_table(rows), ""]
    own = own_cells(OWN)
    lines += ["### Other systems", "", *others_table(others), ""] if others else []
    lines += ["### Breakdown", "", *time_table(rows), ""]
    lines += ["### Our own measured cells", "", *own_table(own), "", "### Targets", ""]
    lines += [f"- {'met' if one.met else 'MISSED'}: {one.target}: {one.found}" for one in targets(rows, own)]
    lines += ["", f"{about['machine']}; {about['versions']}; `{about['command']}`; {about['took']}."]
    return "\n".join(lines)


# The page


@dataclass(frozen=True)
class Errors:
    """Errors of one group of steps: predicted over measured, less 1."""

    name: str
    cells: int
    middle: float
    """Median absolute error."""
    bias: float
    """Median error."""
    worst: float


def targets(rows: list[Row], own: list[Errors]) -> list[Target]:
    every = next(one for one in own if one.name == "all")
    pairs = [pair for row in rows for pair in row.compared()]
    met = sum(pair.met for pair in pairs)
    worst = max(rows, key=lambda row: max(one.published - one.farskip for one in row.predicted))
    slower = max(one.published - one.farskip for one in worst.predicted)
    return [
        Target(
            f"speed-ups within {100 * WITHIN:g} percentage points in {FRACTION:.0%} of the cells, AMD's placement",
            met >= FRACTION * len(pairs),
            f"{met} of {len(pairs)}",
        ),
        Target(
            "our order never slower than AMD's placement",
            slower <= SAME,
            "nowhere" if slower <= SAME else f"{worst.name}: {100 * slower:.2f} points slower",
        ),
        Target(
            f"median error against our own measured cells under {LIMIT:.0%}",
            every.middle < LIMIT,
            f"{every.middle:.1%} of {every.cells} steps",
        ),
    ]


def speed_table(rows: list[Row]) -> list[str]:
    head = "cell | >published | >predicted, AMD's placement | >ours | >overlapped only | met | >compute slower by"
    lines = []
    for row in rows:
        pairs = row.compared()
        ends = sorted(row.predicted, key=lambda one: one.published)
        compared = [ends[0], ends[-1]][: len(pairs)]
        slower = {one.slower(pair.published) for one, pair in zip(compared, pairs, strict=True)}
        ours = [span((getattr(one, name) for one in row.predicted), SPEED) for name in ("farskip", "scheduled")]
        factors = " to ".join(f"{one:.1f} x" for one in sorted(slower))
        lines.append([row.name, *_compared(pairs), *ours, _met(pairs), factors])
    return markdown(head, lines)


def overlap_table(rows: list[Row]) -> list[str]:
    """Published and predicted fractions of the communication that are hidden."""
    lines = []
    for row in rows:
        for name, published in row.line.overlap.items():
            found = span((one.hidden.get(name, one.hidden["total"]) for one in row.predicted), PERCENT)
            ours = span((one.hidden_ours for one in row.predicted), PERCENT) if name == "total" else ""
            lines.append([row.name, name, f"{published:.1%}", found, ours])
    return markdown("cell |  | >published | >predicted, AMD's placement | >ours", lines)


def time_table(rows: list[Row]) -> list[str]:
    head = "cell | >tokens of a sequence | >as written | >communication | >exposed, AMD's | >exposed, ours | >took"
    lines = []
    for row in rows:
        for one in row.predicted:
            whole = [MILLISECONDS.format(1e3 * seconds) for seconds in (one.written, one.communication)]
            exposed = [f"{1e3 * seconds:.1f} ms" for seconds in one.exposed]
            lines.append([row.name, str(one.prompt), *whole, *exposed, f"{one.took:.0f} s"])
    return markdown(head, lines)


def step_time_table(rows: list[Row]) -> list[str]:
    """Predictions that start from published step times."""
    head = "cell | >as written, by the profile | >compute slower by | >so as written | >published"
    lines = []
    sources: dict[StepTime, list[str]] = defaultdict(list)
    for row in rows:
        starts = [one.from_step_time for one in row.predicted if one.from_step_time is not None]
        if not starts or row.line.step_time is None:
            continue
        pairs = row.compared(from_step_times=True)
        by_profile, written = (
            span((1e3 * one.written for one in found), MILLISECONDS) for found in (row.predicted, starts)
        )
        ours = span((one.farskip for one in starts), SPEED)
        cells = [by_profile, f"{starts[0].slower:.2f} x", written, *_compared(pairs), ours, _met(pairs)]
        lines.append([row.name, *cells])
        sources[row.line.step_time].append(row.name)
    notes = [
        f"- {', '.join(names)}: {1e3 * known.seconds:.0f} ms, {known.where}: {known.source}"
        for known, names in sources.items()
    ]
    return [*markdown(f"{head} | >AMD's placement | >ours | met", lines), "", *notes]


def _compared(pairs: list[Compared]) -> list[str]:
    return [span((pair.published for pair in pairs), SPEED), span((pair.predicted for pair in pairs), SPEED)]


def _met(pairs: Iterable[Compared]) -> str:
    return ", ".join("yes" if pair.met else "no" for pair in pairs)


# Our own measured cells


def own_cells(path: Path) -> list[Errors]:
    """Errors by group of steps, and of all steps, from a file of results."""
    errors: dict[str, list[float]] = defaultdict(list)
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        phase = cell["cell"].split("/")[1]
        for name, error in _errors(cell).items():
            errors[f"{phase}, {name}"].append(error)
            errors["all"].append(error)
    return [
        Errors(name, len(found), median(map(abs, found)), median(found), max(found, key=abs))
        for name, found in sorted(errors.items(), key=lambda pair: (pair[0] == "all", pair[0]))
    ]


def _errors(cell: Mapping[str, Any]) -> dict[str, float]:
    estimates, timings = cell["estimates"], cell["timings"]
    predicted = {
        WRITTEN: (_seconds(estimates["none"], "unscheduled"), "plain"),
        NONE: (_seconds(estimates["none"], "after"), "none"),
        FULL: (_seconds(estimates["full"], "after"), "full"),
    }
    return {name: seconds / timings[variant]["median"] - 1 for name, (seconds, variant) in predicted.items()}


def _seconds(graphs: list[Mapping[str, Any]], order: str) -> float:
    return float(sum(graph[order]["seconds"] for graph in graphs))


def own_table(found: list[Errors]) -> list[str]:
    rows = ([one.name, str(one.cells), f"{one.middle:.1%}", f"{one.bias:+.1%}", f"{one.worst:+.1%}"] for one in found)
    return markdown("step | >cells | >median error | >bias | >worst", rows)


if __name__ == "__main__":
    sys.exit(main())
