"""What each part of the scheduler's search earns: the search without it, on programs that are captured once.

Usage: python benchmarks/schedule_ablation.py --programs FILE [--only TEXT ...] [--json docs/schedule_ablation.json]

FILE is read if it exists, else the programs are captured into it, which takes minutes: those of cells of
docs/benchmarks.md, each with the hardware profile that was calibrated for it, as graphs and as kernels; and those of
models at full width (`farskip_compile.simulate`). `--only` captures those whose name contains a TEXT. Nothing is
measured: compiled kernels are not built, and costs are those of the machine model. Each program is searched on its own,
so that kernels keep the graph that the whole search made.

The table says by how much an order is slower without a part: the worst program and the mean, for kernels and graphs of
cells and for models at full size; then the worst on a network half as slow again, and the most memory above that of the
whole search. The file also has the processor time. `benchmarks/overlap.py --table` puts it on the page.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pickle
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any
from unittest import mock

from common import facts
from overlap_bench.page import GROUPS
from overlap_bench.programs import Case, capture

from farskip_compile.passes.schedule import list_scheduler, search
from farskip_compile.passes.schedule.list_scheduler import slower_network
from farskip_compile.passes.schedule.timeline import run_timeline


def _heuristics(keep: Callable[[list_scheduler.Heuristic], bool]) -> dict[str, Any]:
    return {"HEURISTICS": tuple(filter(keep, search.HEURISTICS))}


def _one_window(*args: Any) -> tuple[int, ...]:
    count = len(args[0].program.tasks)
    return list_scheduler.make_order(*args) if args[2] == count else tuple(range(count))


BIASES, SLACKS = search.WAIT_BIASES, search.NETWORK_SLACKS
PARTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "one heuristic": (search, {"HEURISTICS": search.HEURISTICS[:1]}),
    **{f"no wait bias of {one:g}": (search, _heuristics(lambda h, one=one: h.wait_bias != one)) for one in BIASES},
    **{f"no slack of {one:g}": (search, _heuristics(lambda h, one=one: h.network_slack != one)) for one in SLACKS},
    "compute weight 1": (list_scheduler, {"COMPUTE_WEIGHT": 1.0}),
    "compute weight 0.1": (list_scheduler, {"COMPUTE_WEIGHT": 0.1}),
    "no smaller windows": (search, {"make_order": _one_window}),
    "no other candidates": (list_scheduler, {"CANDIDATES": 1}),
    "no `lower_peak`": (search, {"lower_peak": lambda program, order, limit: order}),
    "no second search with less memory": (search, {"MODEST": ()}),
    "no price for memory": (search, {"WORTH": 0.0}),
    "no coarsening": (search, {"LARGE": 10**9}),
    "no published order": (search, {}),
}


def searched(case: Case, part: str | None = None) -> dict[str, float]:
    """Figures of the search without `part`."""
    module, changes = PARTS[part] if part is not None else (search, {})
    known = () if part == "no published order" else case.known
    start = time.process_time()
    with mock.patch.multiple(module, **changes) if changes else contextlib.nullcontext():
        found = search.list_schedule(case.program, case.limits, case.baseline_peak, known)
    seconds = time.process_time() - start
    slower = run_timeline(slower_network(case.program, 0.5), found.order).makespan
    after = found.after
    return {"time": after.makespan, "slower": slower, "peak": after.peak_bytes, "cpu": seconds}


def row(part: str, cases: Sequence[Case], whole: Sequence[dict[str, float]]) -> dict[str, Any]:
    """One line of the table: fractions above the whole search."""
    without = [searched(case, part) for case in cases]

    def more(what: str, group: str | None = None) -> list[float]:
        rows = zip(cases, without, whole, strict=True)
        return [one[what] / max(base[what], 1e-12) - 1 for case, one, base in rows if group in (None, case.group)]

    times = {group: [max(found), mean(found)] for group in GROUPS if (found := more("time", group))}
    cpu = sum(one["cpu"] for one in without) / sum(one["cpu"] for one in whole)
    return {"part": part, "time": times, "slower": max(more("slower")), "peak": max(more("peak")), "cpu": cpu}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--programs", type=Path, required=True, metavar="FILE")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results")
    args = parser.parse_args()
    if not args.programs.exists():
        args.programs.write_bytes(pickle.dumps(capture(args.only)))
    cases: list[Case] = pickle.loads(args.programs.read_bytes())
    whole = [searched(case) for case in cases]
    rows = []
    for part in PARTS:
        rows.append(row(part, cases, whole))
        print(json.dumps(rows[-1]), flush=True)
    found = {group: [case.name for case in cases if case.group == group] for group in GROUPS}
    if args.json is not None:
        kept = json.loads(args.json.read_text()).get("removed", []) if args.json.exists() else []
        data = {"facts": facts(), "programs": found, "rows": rows, "removed": kept}
        args.json.write_text(json.dumps(data, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
