"""How much rewiring damages a trained model, and how much healing recovers: on real English text, on two cores.

Usage: python benchmarks/distillation.py [--quick] [--models ...] [--folder FOLDER] [--json FILE] [--table]

Two models of some million parameters, in the style of DeepSeek-V3 (shared experts) and Qwen3-MoE (none), unmodified
models of transformers, are trained on a dictionary of English. Then our backend rewires each row
(`distill_bench/rows.py`), and `farskip_compile.distill` heals it: by KL to the teacher, or by the text alone; under
each connectivity; in the last layers alone; by the plan's choice. Others are trained from scratch under `full`. All are
judged on held-out text of the same source and of another one (`distill_bench/judge.py`).

Rows run two at a time, one thread each. Every finished row is kept in --folder with its weights and is not run again;
an interrupted row resumes from its last state. Everything random has a seed. At the end docs/distillation.md and its
picture are made from the results (not with --quick or --json); `--table` remakes them and runs nothing. The last lines
are the targets, met or missed by how much.

Exit status: 0 if all targets are met (--quick: if healing heals); 1 if not, or a row failed; 2 wrong usage.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from common import DOCS, RecordsError, facts
from distill_bench import rows as scales
from distill_bench.architectures import MODELS
from distill_bench.page import write_page, write_plot
from distill_bench.results import FrontResult, Results, judge_healing, judge_targets, row_text, targets_text
from distill_bench.rows import rows_of
from distill_bench.run_row import run_row, run_rows
from distill_bench.texts import NoText, text_data

from farskip_compile.errors import FarSkipError

OK, WRONG, USAGE = 0, 1, 2
JSON, PAGE, PICTURE = DOCS / "distillation.json", DOCS / "distillation.md", DOCS / "distillation.png"


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller models, less text, one seed: 10 minutes")
    parser.add_argument("--smoke", action="store_true", help=argparse.SUPPRESS)  # a few steps: does it run?
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="default: both")
    parser.add_argument("--workers", type=int, default=2, help="rows at a time (default: 2)")
    parser.add_argument(
        "--folder", type=Path, default=DOCS.parent / "out" / "distillation", help="texts, weights, results"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help=f"results (default: {JSON.name} in docs/)")
    parser.add_argument("--table", action="store_true", help=f"only make {PAGE.name} and its picture from --json")
    args = parser.parse_args(given)
    args.scale = scales.SMOKE if args.smoke else scales.QUICK if args.quick else scales.WHOLE
    args.folder /= args.scale.name
    args.publish = args.scale is scales.WHOLE and args.json is None and set(args.models) == set(MODELS)
    if args.json is None:
        args.json = JSON if args.publish or args.table else args.folder / "results.json"
    return args


def main() -> int:
    args = arguments()
    try:
        if args.table:
            publish(Results.load(args.json))
            return OK
        return measure(args)
    except RecordsError as error:
        print(f"distillation.py: {error}", file=sys.stderr)
        return USAGE
    except (FarSkipError, NoText) as error:
        print(f"FAIL: {error}", file=sys.stderr)
        return WRONG


def measure(args: argparse.Namespace) -> int:
    started = time.perf_counter()
    about = {**facts(), "healing": args.scale.healing()}
    print("\n".join(f"{name}: {value}" for name, value in about.items()))
    in_order = [row for model in args.models for row in rows_of(model, args.scale)]
    rows = sorted(in_order, key=lambda row: ORDER[row.kind])
    print(f"rows: {len(rows)}, {args.workers} at a time", flush=True)
    done: dict[str, Any] = {}
    # called once: rows that begin together must not both download it
    text = partial(text_data, args.folder, args.scale)
    for found in run_rows(rows, args.workers, first=text, work=partial(run_row, args.folder, args.scale)):
        done[found.row.key] = found
        print(row_text(found, done.get(f"{found.row.model}-teacher")), flush=True)
    seconds = sum(one.seconds for one in done.values()) / args.workers
    about["time"] = f"{seconds / 60:.0f} minutes, {args.workers} rows at a time"
    ended = [done[row.key] for row in in_order]
    fronts = [one for one in ended if isinstance(one, FrontResult)]
    results = Results(about, [one for one in ended if not isinstance(one, FrontResult)], fronts)
    results.write(args.json)
    targets = judge_targets(results)
    print(f"\n{time.perf_counter() - started:.0f} s in all\n{targets_text(targets)}")
    if args.publish:
        publish(results)
    if args.scale is not scales.WHOLE:
        print("These targets apply to the whole experiment. At any scale:")
        targets = judge_healing(results)
        print(targets_text(targets))
    passed = all(target.met for target in targets)
    print("PASS" if passed else "FAIL")
    return OK if passed else WRONG


ORDER = {"teacher": 0, "front": 1, "scratch": 2, "healed": 3, "unhealed": 4}


def publish(results: Results) -> None:
    write_plot(results, PICTURE)
    write_page(results, PAGE, JSON, PICTURE)


if __name__ == "__main__":
    sys.exit(main())
