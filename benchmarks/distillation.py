# SPDX-License-Identifier: Apache-2.0
"""How much rewiring damages a trained model, and how much healing recovers: on real English text, on two cores.

Usage: python benchmarks/distillation.py [--quick | --larger] [--models ...] [--folder FOLDER] [--json FILE] [--table]

Two models of half a million parameters, in the style of DeepSeek-V3 (shared experts) and Qwen3-MoE (none), unmodified
models of transformers, are trained on a dictionary of English and on the documentation of Linux. Then our backend
rewires each row (`distill_bench/rows.py`), and it is healed: by the fold alone (`farskip_compile.healing.fold`), by the
paper's recipe, by both, by the best recipe (`farskip_compile.healing.distill`); with 3, 10 and 30 % of the teacher's
tokens; under each connectivity; by the plan's choice. Controls train the teacher itself on. All are judged on held-out
documents of the same corpus and of the other one (`distill_bench/judge.py`).

Rows run two at a time, one thread each. Every finished row is kept in --folder with its weights and is not run again;
an interrupted row resumes from its last state. Everything random has a seed. At the end docs/distillation.md and its
picture are made from the results (not with --quick or --json); `--table` remakes them and runs nothing. The last lines
are the targets, met or missed by how much. `--larger` trains and heals larger models, one teacher each, and adds a
section to the page.

Exit status: 0 if all targets are met (--quick: if healing heals); 1 if not, or a row failed; 2 wrong usage.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from common import DOCS, RecordsError, facts, replace
from distill_bench import rows as scales
from distill_bench.architectures import MODELS
from distill_bench.page import write_page
from distill_bench.plot import write_plot
from distill_bench.results import FrontResult, Results
from distill_bench.rows import Row, Scale, rows_of
from distill_bench.run_row import run_row, run_rows
from distill_bench.targets import judge_healed, judge_healing, judge_targets, row_text, targets_text
from distill_bench.texts import NoText, about_text

from farskip_compile.errors import FarSkipError

OK, WRONG, USAGE = 0, 1, 2
SAID = "said-{vocabulary}.txt"
"""What the text of a corpus is, in its folder, with its tokens by a tokenizer of that size."""
JSON, PAGE, PICTURE = DOCS / "distillation.json", DOCS / "distillation.md", DOCS / "distillation.png"
LARGER = DOCS / "distillation_larger.json"


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller models, less text, one teacher: 5 minutes")
    parser.add_argument("--larger", action="store_true", help="a larger model, its main rows: half an hour")
    parser.add_argument("--smoke", action="store_true", help=argparse.SUPPRESS)  # a few steps: does it run?
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="default: both")
    parser.add_argument("--workers", type=int, default=2, help="rows at a time (default: 2)")
    parser.add_argument(
        "--folder", type=Path, default=DOCS.parent / "out" / "distillation", help="texts, weights, results"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help=f"results (default: {JSON.name} in docs/)")
    parser.add_argument("--table", action="store_true", help=f"only make {PAGE.name} and its picture from --json")
    args = parser.parse_args(given)
    chosen = {scales.SMOKE: args.smoke, scales.QUICK: args.quick, scales.LARGER: args.larger}
    args.scale = next((scale for scale, given in chosen.items() if given), scales.WHOLE)
    args.folder /= args.scale.name
    published = {scales.WHOLE: JSON, scales.LARGER: LARGER}.get(args.scale)
    args.publish = published is not None and args.json is None and set(args.models) == set(MODELS)
    if args.json is None:
        args.json = JSON if args.table else published if args.publish else args.folder / "results.json"
    return args


def main() -> int:
    args = arguments()
    try:
        if args.table:
            publish(args.json)
            return OK
        return measure(args)
    except RecordsError as error:
        print(f"distillation.py: {error}", file=sys.stderr)
        return USAGE
    except (FarSkipError, NoText) as error:
        print(f"FAIL: {error}", file=sys.stderr)
        return WRONG


def measure(args: argparse.Namespace) -> int:
    started, scale = time.perf_counter(), args.scale
    about: dict[str, Any] = {**facts(), "batches": scale.judged // scale.batch}
    print("\n".join(f"{name}: {value}" for name, value in about.items() if name != "batches"))
    in_order = [row for corpus in scale.corpora for model in args.models for row in rows_of(model, corpus, scale)]
    rows = sorted(in_order, key=_turn)
    print(f"rows: {len(rows)}, {args.workers} at a time", flush=True)
    done: dict[str, Any] = {}
    # called once: rows that begin together must not both download it
    texts = partial(about_texts, args.folder, scale)
    for found in run_rows(rows, args.workers, first=texts, work=partial(run_row, args.folder, scale)):
        done[found.row.key] = found
        start = f"{found.row.setting}-{{}}@{found.row.seed}"
        unhealed = start.format(f"unhealed-{found.row.connectivity}")
        print(row_text(found, done.get(start.format("teacher")), done.get(unhealed)), flush=True)
    about |= {f"text, {corpus}": _said(args.folder, scale, corpus).read_text() for corpus in scale.corpora}
    minutes = sum(one.seconds for one in done.values()) / 60
    about["time"] = f"{minutes:.0f} minutes of processor time, {args.workers} rows at a time"
    ended = [done[row.key] for row in in_order]
    fronts = [one for one in ended if isinstance(one, FrontResult)]
    results = Results(about, [one for one in ended if not isinstance(one, FrontResult)], fronts)
    results.write(args.json)
    targets = judge_healed(results) if scale.short else judge_targets(results)
    print(f"\n{time.perf_counter() - started:.0f} s in all\n{targets_text(targets)}")
    if args.publish:
        publish(JSON)
    if args.scale in (scales.QUICK, scales.SMOKE):
        print("These targets apply to the whole experiment. At any scale:")
        targets = judge_healing(results)
        print(targets_text(targets))
    passed = all(target.met for target in targets)
    print("PASS" if passed else "FAIL")
    return OK if passed else WRONG


def _turn(row: Row) -> tuple[float, ...]:
    """Teachers first; then what the others need, and what takes longest, so that both workers end together."""
    kinds = {"teacher": 0, "front": 1, "unhealed": 2}
    return (kinds.get(row.kind, 3), -row.part)


def about_texts(folder: Path, scale: Scale) -> None:
    """Make all text, and note what it is."""
    for corpus in scale.corpora:
        said = _said(folder, scale, corpus)
        if not said.exists():
            replace(said, about_text(folder, scale, corpus))


def _said(folder: Path, scale: Scale, corpus: str) -> Path:
    return folder / corpus / SAID.format(vocabulary=scale.vocabulary)


def publish(file: Path) -> None:
    """The page and its picture, from the results of the whole experiment in `file` and those of the larger models."""
    results = Results.load(file)
    write_plot(results, PICTURE)
    write_page(results, PAGE, JSON, PICTURE, Results.load(LARGER) if LARGER.exists() else None)


if __name__ == "__main__":
    sys.exit(main())
