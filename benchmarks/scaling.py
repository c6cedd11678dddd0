"""Where FarSkip pays and where it does not, by prediction, and what predicting at full size costs.

Usage: python benchmarks/scaling.py [--sweeps SWEEP ...] [--workers N] [--table]

Sweeps over ranks, networks, skew and batch (`scaling_bench/sweeps.py`), each point a model at full size that is
captured, rewired, ordered and played (`farskip_compile.simulate`); and ten models with the time and memory that it
took. Speed-ups are over the model as written. Results go to docs/scaling.json, and from there into docs/scaling.md
between its marks and into docs/scaling.png; `--sweeps` renews some of them. The last lines are the targets. Exit
status: 0 all met, 1 not.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from compile_cost import machine, versions
from predicting import write_between_marks
from scaling_bench.page import draw, tables, targets
from scaling_bench.points import Found, run_sweeps
from scaling_bench.sweeps import SWEEPS

DOCS = Path(__file__).parents[1] / "docs"
JSON, PAGE, PICTURE = DOCS / "scaling.json", DOCS / "scaling.md", DOCS / "scaling.png"


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [one.name for one in SWEEPS]
    parser.add_argument("--sweeps", nargs="+", choices=names, default=names, metavar="SWEEP", help=", ".join(names))
    parser.add_argument("--workers", type=int, default=2, help="predictions at a time")
    parser.add_argument("--table", action="store_true", help="only write the page, from the results that there are")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    options = arguments(given)
    kept = json.loads(JSON.read_text()) if JSON.exists() else {"about": {}, "found": []}
    found, about = [Found(**one) for one in kept["found"]], kept["about"]
    if not options.table:
        start = time.perf_counter()
        fresh = run_sweeps(options.sweeps, options.workers)
        found = [one for one in found if one.sweep not in options.sweeps] + fresh
        about = {"machine": machine(), "versions": versions(), "took": f"{time.perf_counter() - start:.0f} s"}
        about["command"] = " ".join(["python benchmarks/scaling.py", *(given or sys.argv[1:])])
        JSON.write_text(json.dumps({"about": about, "found": [one.to_json() for one in found]}, indent=1) + "\n")
    goals = targets(found)
    lines = [*tables(found), "### Targets", ""]
    lines += [f"- {'met' if met else 'MISSED'}: {text}" for met, text in goals]
    lines += ["", f"Last run: {about['machine']}; {about['versions']}; `{about['command']}`; {about['took']}."]
    write_between_marks(PAGE, "benchmarks/scaling.py", lines)
    if {one.name for one in SWEEPS} <= {one.sweep for one in found}:
        draw(found, PICTURE)
    print("\n".join(lines))
    return 0 if all(met for met, _ in goals) else 1


if __name__ == "__main__":
    sys.exit(main())
