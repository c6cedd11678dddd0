# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.fuzz`: generate, check, count, and print what failed; `--replay` makes it small.

Exit status 0: every demand was met; 1: not (also if a process died). `--seconds` stops early, and says so.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter

from tests.fuzz.batch import Chunk, Failure, Result, chunks, run_all, run_chunk
from tests.fuzz.checks import KINDS

WIDTH = 80


def main() -> int:
    """Parse the command line, run, print; returns the exit status."""
    options = _parser().parse_args()
    if options.replay:
        kind, seed, number = options.replay.split(":")
        result = run_chunk(Chunk(kind, int(seed), int(number), KINDS[kind].chunk))
        _print_failures(result.failures)
        print(f"{options.replay}: {result.ran} examples, {len(result.failures)} failures")
        return int(bool(result.failures))
    todo = chunks({kind: getattr(options, kind) for kind in KINDS}, options.seed)
    started = time.time()
    deadline = started + options.seconds if options.seconds else math.inf
    results: list[Result] = []
    for result in run_all(todo, options.jobs, deadline):
        results.append(result)
        _print_failures(result.failures)
        _print_progress(results, len(todo), time.time() - started)
    print()
    _print_table(results, options)
    stopped = len(results) < len(todo) or not all(result.complete for result in results)
    if stopped:
        print(f"stopped early: {sum(r.ran for r in results)} of {sum(c.examples for c in todo)} examples ran")
    return int(any(result.failures for result in results))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--graphs", type=int, default=10_000, help="networks whose table is known")
    parser.add_argument("--spoiled", type=int, default=2_000, help="networks made odd")
    parser.add_argument("--architectures", type=int, default=2_000, help="decoders through Dynamo")
    parser.add_argument("--styles", type=int, default=1_000, help="decoders in the styles of others")
    parser.add_argument("--streams", type=int, default=3_000, help="graphs whose stream is written to and reshaped")
    parser.add_argument("--models", type=int, default=1_500, help="the same through Dynamo")
    parser.add_argument("--stacks", type=int, default=500, help="two stacks of unlike length")
    parser.add_argument("--parts", type=int, default=500, help="models that are compiled in parts")
    parser.add_argument("--sessions", type=int, default=400, help="what users do around a compile")
    parser.add_argument("--ranks", type=int, default=100, help="the same on two ranks")
    parser.add_argument("--seed", type=int, default=0, help="which examples")
    parser.add_argument("--seconds", type=float, default=0.0, help="stop after this time")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--replay", default="", help="KIND:SEED:CHUNK: run that chunk again, here, and shrink")
    return parser


def _print_failures(failures: list[Failure]) -> None:
    for failure in failures:
        print(f"\nFAILED {failure.chunk.kind}, seed {failure.chunk.seed}, example {failure.index} of its chunk")
        print(f"  replay:  python -m tests.fuzz --replay {failure.chunk.name}")
        print(f"  error:   {failure.error}")
        print(f"  example: {failure.example}", flush=True)


def _print_progress(results: list[Result], total: int, seconds: float) -> None:
    failures = sum(len(result.failures) for result in results)
    line = f"{len(results)} of {total} chunks, {seconds:.0f} s, {failures} failures"
    print(f"\r{line}" if sys.stdout.isatty() else line, end="" if sys.stdout.isatty() else "\n", flush=True)


def _print_table(results: list[Result], options: argparse.Namespace) -> None:
    print(f"seed {options.seed}".center(WIDTH).rstrip())
    heads = ("kind", "ran", "distinct", "accepted", "refused", "failed", "s each", "s in all")
    print(f"{heads[0]:<14}" + "".join(f"{head:>9}" for head in heads[1:]))
    for kind in KINDS:
        of_kind = [result for result in results if result.chunk.kind == kind]
        ran, seconds = sum(result.ran for result in of_kind), sum(result.seconds for result in of_kind)
        counts = sum((result.counts for result in of_kind), Counter())
        distinct = len(set().union(*(result.seen for result in of_kind)))
        refused = sum(number for name, number in counts.items() if name.startswith("refused "))
        failed = sum(len(result.failures) for result in of_kind)
        numbers = (ran, distinct, counts["accepted"], refused, failed)
        each = seconds / max(ran, 1)
        print(f"{kind:<14}" + "".join(f"{number:>9}" for number in numbers) + f"{each:>9.2f}{seconds:>9.0f}")
    for kind in KINDS:
        counts = sum((result.counts for result in results if result.chunk.kind == kind), Counter())
        if counts:
            print(f"\n{kind}")
        for name, number in sorted(counts.items(), key=lambda item: (item[0].split(" ")[0], -item[1])):
            print(f"  {name[: WIDTH - 12]:<{WIDTH - 12}}{number:>10}")


if __name__ == "__main__":
    sys.exit(main())
