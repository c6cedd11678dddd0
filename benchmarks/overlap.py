# SPDX-License-Identifier: Apache-2.0
"""How much of a step's communication is hidden: our backend against every baseline.

Usage: python benchmarks/overlap.py [--quick] [--resume] [--cells CELL ...] [--models ...] [--phases ...]
                                    [--routings ...] [--hosts ...] [--ratios ...]
       python benchmarks/overlap.py --ablation [--cells CELL ...]     our backend without one pass at a time
       python benchmarks/overlap.py --table | --plot        from the file of results, without measuring

Models in the style of DeepSeek-V3 and Qwen3-MoE, their experts spread over hosts (all-to-all), and of Llama-4, its
matrices cut among them (all-reduce); prefill, decode and training steps; float32. Routing is balanced (padded
exchanges) or skewed (dropless ones). 2 or 4 hosts are joined by a network with a limited rate (`network.py`). A cell is
one combination, `deepseek_v3/prefill/balanced/2/0.5`: the last is the ratio of communication to compute, both measured
alone, for which the rate is chosen.
* compute: the step of the hand-written FarSkip form, compiled by plain Inductor, with collectives that replay recorded
  results: its kernels, without network, waiting or the other ranks.
* communication: the collectives of this step one after another at this rate, nothing else.
* bound: the larger of the two, plus what no schedule can hide (`overlap_bench/bound.py`).

`overlap_bench/cells.py` lists the variants. All of them, compute and communication are interleaved in one process on
each host, so that a slow moment slows all alike. A step takes as long as on its slowest rank; shown are the median over
repetitions and the interquartile range. Exposed communication (`farskip_compile.measure.profiling`: a collective is in
flight and nothing is computed) is measured in further steps under the profiler, as a mean over ranks. Our backend and
Inductor's own overlap scheduling get a profile that is calibrated here. Results are compared on every rank in the same
run.

Every finished cell is written to --json at once; `--resume` skips what is there. At the end docs/benchmarks.md and its
picture are made from that file, if it is the default one. The last lines are the targets (`overlap_bench/targets.py`),
met or missed by how much. Exit status: 0 all met in the cells of this run; 1 not, or a rank failed; 2 wrong usage; 3
namespaces are not available, and all this was measured on the loopback interface.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from common import DOCS, RecordsError, facts
from harness import HarnessError, Network, QuantityError
from overlap_bench import cells, settings
from overlap_bench.cells import Cell, CellError, Group
from overlap_bench.page import PASS_ABLATION, write_page
from overlap_bench.plot import write_plot
from overlap_bench.results import Result, Store
from overlap_bench.targets import judge, summary
from overlap_bench.terminal import cell_text, facts_text

OK, WRONG, USAGE, NO_NETWORK = 0, 1, 2, 3
JSON, PAGE, PICTURE = DOCS / "benchmarks.json", DOCS / "benchmarks.md", DOCS / "benchmarks.png"
ABLATED = DOCS / PASS_ABLATION


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cells", nargs="+", metavar="CELL", help=f"just these, {cells.EXAMPLE}")
    parser.add_argument("--models", nargs="+", choices=cells.MODELS, default=cells.MODELS, help="default: all")
    parser.add_argument("--phases", nargs="+", choices=cells.PHASES, default=cells.PHASES, help="default: all")
    parser.add_argument("--routings", "--routing", nargs="+", choices=cells.ROUTINGS, default=cells.ROUTINGS)
    parser.add_argument("--hosts", nargs="+", type=int, choices=cells.HOSTS, default=cells.HOSTS, help="default: 2 4")
    parser.add_argument("--ratios", nargs="+", type=float, default=cells.RATIOS, help="default: 0.5 1 2")
    parser.add_argument("--quick", action="store_true", help="two cells, 4 layers, fewer repetitions: < 10 minutes")
    parser.add_argument("--smoke", action="store_true", help=argparse.SUPPRESS)  # tiny models: does it run?
    parser.add_argument("--ablation", action="store_true", help=f"measure what each pass earns, into {ABLATED.name}")
    parser.add_argument("--resume", action="store_true", help="skip the cells that --json has")
    parser.add_argument("--json", type=Path, metavar="FILE", help=f"results (default: {JSON.name} in docs/)")
    parser.add_argument("--table", action="store_true", help=f"only make {PAGE.name} from --json")
    parser.add_argument("--plot", action="store_true", help=f"only make {PICTURE.name} from --json")
    parser.add_argument("--traces", type=Path, metavar="FOLDER", help="keep Chrome traces of every variant and rank")
    parser.add_argument("--repetitions", type=int, help="of each variant")
    parser.add_argument("--layers", type=int, help="at most")
    parser.add_argument("--tokens", type=int, help="of each rank in prefill and training")
    parser.add_argument("--width", type=int, help="of the residual stream")
    parser.add_argument("--calibration", type=float, metavar="SECONDS", help="0: schedule by the shipped profile")
    parser.add_argument("--memory-increase", type=float, help="option of our backend (default: its own)")
    args = parser.parse_args(given)
    if args.repetitions is not None and args.repetitions < 2:
        parser.error("--repetitions must be at least 2")
    args.default_file = args.json is None and not args.quick and not args.smoke
    args.json = (ABLATED if args.ablation else JSON) if args.default_file else args.json
    few = cells.ablated() if args.ablation else cells.quick() if args.quick else None
    named = few or cells.grid(args.models, args.phases, args.routings, args.hosts, args.ratios)
    try:
        args.wanted = [Cell.parse(text) for text in args.cells or map(str, named)]
    except CellError as error:
        parser.error(str(error))
    if not args.wanted:
        parser.error("the grid has none of these cells; --cells names any")
    effort = settings.SMOKE if args.smoke else settings.QUICK if args.quick else settings.FULL
    given = {name: getattr(args, name) for name in ("repetitions", "layers", "tokens", "width", "calibration")}
    effort = dataclasses.replace(effort, selection="ablation" if args.ablation else None)
    args.effort = dataclasses.replace(effort, **{name: one for name, one in given.items() if one is not None})
    return args


def main() -> int:
    args = arguments()
    try:
        if args.table or args.plot:
            return rebuild(args)
        return Run(args).measure()
    except (QuantityError, RecordsError) as error:
        print(f"overlap.py: {error}", file=sys.stderr)
        return USAGE
    except HarnessError as error:
        print(f"FAIL: {error}", file=sys.stderr)
        return WRONG


def rebuild(args: argparse.Namespace) -> int:
    store = Store.load(args.json or JSON)
    if args.plot:
        write_plot(store.ordered(), PICTURE)
    if args.table:
        write_page(store, PAGE, args.json or JSON, PICTURE if PICTURE.exists() else None)
    return OK


class Run:
    """One run of the benchmark."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.width = shutil.get_terminal_size((80, 24)).columns
        self.effort: settings.Effort = args.effort
        self.store = Store(args.json)
        if args.json is not None and args.json.exists() and (args.resume or args.default_file):
            self.store = Store.load(args.json)
        done = self.store.results if args.resume else {}
        self.wanted = [cell for cell in args.wanted if str(cell) not in done]
        self.finished: list[Result] = []
        self.profiles: dict[int, dict[str, Any]] = {}
        self.problem: str | None = None

    def measure(self) -> int:
        """Measure all requested cells, then print the verdicts."""
        start = time.perf_counter()
        least = min(settings.LEAST, self.effort.repetitions)
        about = facts()
        self.store.facts = {
            **{name: about[name] for name in ("versions", "command")},
            "method": f"median and interquartile range of {least} to {self.effort.repetitions} interleaved repetitions "
            f"(no more after {self.effort.seconds:g} s), slowest rank; hidden: the median of {self.effort.profiles} "
            f"profiled steps, mean over ranks",
        }
        print(facts_text({"machine": about["machine"], **self.store.facts}, self.width))
        groups = cells.by_group(self.wanted)
        print(f"cells:    {len(self.wanted)} in {len(groups)} groups", flush=True)
        for group, ratios in groups.items():
            self._group(group, ratios)
        judged = [] if self.args.ablation else self.finished
        verdicts = [verdict for result in judged for verdict in judge(result)]
        lines = [verdict.line() for verdict in verdicts]
        lines += [f"{target}: met in {met} of {total} cells" for target, met, total in summary(verdicts)]
        print("\n".join([f"\n{time.perf_counter() - start:.0f} s in all", *lines]))
        if self.args.default_file and JSON.exists():
            store = Store.load(JSON)
            write_plot(store.ordered(), PICTURE)
            write_page(store, PAGE, JSON, PICTURE)
        if self.problem is not None:
            print(f"NOT CHECKED: loopback, not a network ({self.problem})")
            return NO_NETWORK
        passed = all(verdict.met for verdict in verdicts)
        print("PASS" if passed else "FAIL")
        return OK if passed else WRONG

    def _group(self, group: Group, ratios: list[float]) -> None:
        from overlap_bench.launch import run_group

        started = time.perf_counter()
        sizes = settings.settings_of(group, self.effort)
        print(f"\n{settings.describe(group, sizes)}", flush=True)

        def log(rank: int, line: str) -> None:
            print(f"{group}: {time.perf_counter() - started:4.0f} s  {line}", file=sys.stderr, flush=True)

        def finished(result: Result) -> None:
            self.finished.append(result)
            self.store.add(result)
            print(f"\n{cell_text(result, self.width)}", flush=True)

        options = {} if self.args.memory_increase is None else {"memory_increase": self.args.memory_increase}
        with Network(group.hosts, None, log=log) as network:
            self.problem = self.problem or network.problem
            known, traces = self.profiles.get(group.hosts), self.args.traces and self.args.traces.resolve()
            self.profiles[group.hosts] = run_group(
                network, group, ratios, sizes, options=options, profile=known, traces=traces, finished=finished
            )


if __name__ == "__main__":
    sys.exit(main())
