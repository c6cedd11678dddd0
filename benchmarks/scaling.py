"""Where FarSkip pays and where it does not, by prediction, and what predicting at full size costs.

Usage: python benchmarks/scaling.py [--sweeps SWEEP ...] [--workers N] [--table]

Sweeps over ranks, networks, skew and batch (`scaling_bench/sweeps.py`). Each point is a model at full size that is
captured, rewired, ordered and simulated (`farskip_compile.simulate`); ten models are also shown with the time and
memory that predicting them took. Speed-ups are over the model as written. Results go to docs/scaling.json, and from
there into docs/scaling.md between its marks and into docs/scaling.png; `--sweeps` renews some of them. The last lines
are the targets. Exit status: 0 all met, 1 not.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict

from common import DOCS, decode, facts, replace, write_between_marks
from scaling_bench.page import draw, tables, targets
from scaling_bench.sweeps import SWEEPS, Found, run_sweeps

JSON, PAGE, PICTURE = DOCS / "scaling.json", DOCS / "scaling.md", DOCS / "scaling.png"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = list(SWEEPS)
    parser.add_argument("--sweeps", nargs="+", choices=names, default=names, metavar="SWEEP", help=", ".join(names))
    parser.add_argument("--workers", type=int, default=2, help="predictions at a time")
    parser.add_argument("--table", action="store_true", help="only write the page, from existing results")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    kept = json.loads(JSON.read_text()) if JSON.exists() else {"about": {}, "found": []}
    found, about = decode(list[Found], kept["found"]), kept["about"]
    if not options.table:
        about, start = facts(), time.perf_counter()
        fresh = run_sweeps(options.sweeps, options.workers)
        found = [one for one in found if one.sweep not in options.sweeps] + fresh
        about["took"] = f"{time.perf_counter() - start:.0f} s"
        replace(JSON, json.dumps({"about": about, "found": [asdict(one) for one in found]}, indent=1) + "\n")
    goals = targets(found)
    lines = [*tables(found), "### Targets", ""]
    lines += [f"- {'met' if met else 'MISSED'}: {text}" for met, text in goals]
    lines += ["", f"Last run: {about['machine']}; {about['versions']}; `{about['command']}`; {about['took']}."]
    write_between_marks(PAGE, "benchmarks/scaling.py", lines)
    if SWEEPS.keys() <= {one.sweep for one in found}:
        draw(found, PICTURE)
    print("\n".join(lines))
    return 0 if all(met for met, _ in goals) else 1


if __name__ == "__main__":
    sys.exit(main())
