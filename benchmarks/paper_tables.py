"""AMD's published figures for FarSkip, next to predictions for the same settings.

Usage: python benchmarks/paper_tables.py [--quick] [--cells CELL ...] [--workers N] [--table]

For each published cell (`paper_bench/published.py`) the model at full size is captured, rewired and simulated on the
profile of the hardware, by AMD's placement of launches and waits and in our order (`farskip_compile.simulate`). The
profiles are those that the package ships: data sheets and public measurements, each with its source. Nothing is fitted
to a cell. How far an unknown engine puts a prediction off is shown in two ways: the factor by which compute would have
to take longer for the prediction to match what was published, and, where somebody else published a step time, a
prediction that starts from it.

`--quick` predicts only the first 8 layers of each model: in minutes, and with other numbers. Results go to
docs/paper_tables.json and into docs/paper_tables.md between its marks; `--table` rewrites the page from the file. The
page also shows the measured cells of overlap.py (docs/benchmarks.json) with their predictions. The last lines are the
targets. Exit status: 0 all met, 1 not, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict

from common import DOCS, decode, facts, replace, write_between_marks
from paper_bench.page import overlap_table, own_cells, own_table, speed_table, step_time_table, targets, time_table
from paper_bench.predicted import Row, predict_all
from paper_bench.published import PUBLISHED

JSON, PAGE, OWN = DOCS / "paper_tables.json", DOCS / "paper_tables.md", DOCS / "benchmarks.json"
QUICK_LAYERS = 8


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [one.name for one in PUBLISHED]
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_LAYERS} layers of each model; writes no page")
    parser.add_argument("--cells", nargs="+", choices=names, default=names, metavar="CELL", help=", ".join(names))
    parser.add_argument("--workers", type=int, default=2, help="predictions at a time")
    parser.add_argument("--table", action="store_true", help="only write the page, from existing results")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    if options.table:
        kept = json.loads(JSON.read_text())
        rows, about = decode(list[Row], kept["rows"]), kept["about"]
    else:
        about, start = facts(), time.perf_counter()
        rows = predict_all(options.cells, QUICK_LAYERS if options.quick else None, options.workers)
        about["took"] = f"{time.perf_counter() - start:.0f} s"
    whole = options.table or (not options.quick and len(options.cells) == len(PUBLISHED))
    if whole:
        replace(JSON, json.dumps({"about": about, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
        write_between_marks(PAGE, "benchmarks/paper_tables.py", [body(rows, about)])
    print(body(rows, about))
    return 0 if all(one.met for one in targets(rows, own_cells(OWN))) else 1


def body(rows: list[Row], about: dict[str, str]) -> str:
    lines = ["### Speed-ups", "", *speed_table(rows), "", "### Communication hidden", "", *overlap_table(rows), ""]
    if any(one.from_step_time for row in rows for one in row.predicted):
        lines += ["### From published times of the step as written", "", *step_time_table(rows), ""]
    own = own_cells(OWN)
    lines += ["### Breakdown", "", *time_table(rows), ""]
    lines += ["### Our own measured cells", "", *own_table(own), "", "### Targets", ""]
    lines += [f"- {'met' if one.met else 'MISSED'}: {one.target}: {one.found}" for one in targets(rows, own)]
    lines += ["", f"{about['machine']}; {about['versions']}; `{about['command']}`; {about['took']}."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
