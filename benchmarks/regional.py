# SPDX-License-Identifier: Apache-2.0
"""Layers compiled one by one against the whole graph: seconds of the compile, and of the step on a limited network.

Usage: python benchmarks/regional.py [--compile] [--steps] [--memory] [--resume]
                                     [--phases ...] [--layers ...] [--ratios ...]
       python benchmarks/regional.py --table        the page from the file of results, without measuring

`--compile`: cold and warm compiles of a DeepSeek-V3 of tiny widths at 8, 32 and 61 layers, prefill and training, each
in a fresh process (`regional_bench/compiled.py`): the whole graph, `farskip_compile.regional`, and plain Inductor layer
by layer. `--steps`: step time and hidden communication as in `overlap.py`, whose parts measure them
(`regional_bench/stepped.py`): plain Inductor and our backend, each on the whole graph and by layer; prefill and
training, at ratios of communication to compute of 0.5 and 1. `--memory`: the peak of a training step under FSDP2 with a
shard group for each layer (`regional_bench/sharded.py`). None of them: all.

Every finished measurement is written to --json at once; `--resume` skips what is there. At the end docs/regional.md is
made from that file, if it is the default one. The last lines are the targets (`regional_bench/targets.py`) of all that
the file holds. Exit status: 0 all met; 1 not, or a rank failed; 2 wrong usage; 3 namespaces are not available, and all
steps were measured on the loopback interface.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path

from common import DOCS, RecordsError, facts
from harness import HarnessError
from overlap_bench import settings
from overlap_bench.results import Result
from overlap_bench.terminal import cell_text
from regional_bench import compiled, sharded, stepped
from regional_bench.compiled import Compiled
from regional_bench.page import target_lines, write_page
from regional_bench.results import COMPILE, MEMORY, STEPS, Store
from regional_bench.sharded import Sharded
from regional_bench.targets import judge

OK, WRONG, USAGE, NO_NETWORK = 0, 1, 2, 3
JSON, PAGE = DOCS / "regional.json", DOCS / "regional.md"
WIDTH = 120


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    phases = compiled.PHASES
    parser.add_argument("--compile", action="store_true", help="only seconds of compiles")
    parser.add_argument("--steps", action="store_true", help="only step times")
    parser.add_argument("--memory", action="store_true", help="only peak memory under FSDP2")
    parser.add_argument("--phases", nargs="+", choices=phases, default=phases, help="default: both")
    parser.add_argument("--layers", nargs="+", type=int, default=compiled.LAYERS, help="to compile (default: 8 32 61)")
    parser.add_argument("--ratios", nargs="+", type=float, choices=stepped.RATIOS, default=stepped.RATIOS)
    parser.add_argument("--repetitions", type=int, help="of each variant's step")
    parser.add_argument("--resume", action="store_true", help="skip what --json has")
    parser.add_argument("--json", type=Path, metavar="FILE", help=f"results (default: {JSON.name} in docs/)")
    parser.add_argument("--table", action="store_true", help=f"only make {PAGE.name} from --json")
    parser.add_argument("--smoke", action="store_true", help=argparse.SUPPRESS)  # steps of tiny models: does it run?
    args = parser.parse_args(given)
    if args.repetitions is not None and args.repetitions < 2:
        parser.error("--repetitions must be at least 2")
    if min(args.layers) < 2:
        parser.error("--layers must be at least 2: one dense, one with experts")
    if not (args.compile or args.steps or args.memory):
        args.compile = args.steps = args.memory = True
    args.default_file = args.json is None and not args.smoke
    args.json = JSON if args.default_file else args.json
    effort = dataclasses.replace(settings.SMOKE if args.smoke else settings.FULL, selection=stepped.SELECTION)
    args.effort = effort if args.repetitions is None else dataclasses.replace(effort, repetitions=args.repetitions)
    return args


def main() -> int:
    args = arguments()
    try:
        if args.table:
            write_page(Store.load(args.json or JSON), PAGE, args.json or JSON)
            return OK
        return measure(args)
    except RecordsError as error:
        print(f"regional.py: {error}", file=sys.stderr)
        return USAGE
    except HarnessError as error:
        print(f"FAIL: {error}", file=sys.stderr)
        return WRONG


def measure(args: argparse.Namespace) -> int:
    """All that is asked for, then the verdicts."""
    store, start, problem = Store(args.json), time.perf_counter(), None
    if args.json is not None and args.json.exists() and (args.resume or args.default_file):
        store = Store.load(args.json)

    def finished(found: Compiled | Result | Sharded) -> None:
        store.add(found)
        print(text_of(found), flush=True)

    if args.compile:
        keys = compiled.tasks(args.phases, args.layers)
        keys = [key for key in keys if not (args.resume and key in store.compiles)]
        store.facts[COMPILE] = store.facts.get(COMPILE, {}) if not keys else facts()
        for one in compiled.measure(keys):
            finished(one)
    if args.steps:
        cells = stepped.grid(args.phases, args.ratios)
        cells = [cell for cell in cells if not (args.resume and str(cell) in store.cells)]
        store.facts[STEPS] = store.facts.get(STEPS, {}) if not cells else facts()
        problem = stepped.measure(cells, args.effort, finished)
    if args.memory:
        wanted = [key for key in sharded.tasks() if not (args.resume and key in store.sharded)]
        store.facts[MEMORY] = store.facts.get(MEMORY, {}) if not wanted else facts()
        for held in sharded.measure(wanted):
            finished(held)
    verdicts = judge(store.compiles, store.cells_in_order(), store.sharded)
    print("\n".join([f"\n{time.perf_counter() - start:.0f} s in all", *target_lines(verdicts)]))
    if args.default_file:
        write_page(store, PAGE, JSON)
    if problem is not None:
        print(f"NOT CHECKED: loopback, not a network ({problem})")
        return NO_NETWORK
    return OK if all(verdict.met for verdict in verdicts) else WRONG


def text_of(found: Compiled | Result | Sharded) -> str:
    if isinstance(found, Result):
        return cell_text(found, WIDTH)
    if isinstance(found, Sharded):
        sizes = f"parameters {found.parameters / 1e6:7.1f} MB, step {found.peak / 1e6:7.1f} MB"
        return f"{found.form:15}  {'checkpointed' if found.checkpointed else 'not checkpointed':16}  {sizes}"
    times = f"cold {found.cold.seconds:6.1f} s, warm {found.warm.seconds:6.1f} s"
    return f"{found.phase:8} {found.layers:2} layers  {found.form:15}  {times}, {found.cold.graphs} graphs"


if __name__ == "__main__":
    sys.exit(main())
