# SPDX-License-Identifier: Apache-2.0
"""What one GPU can show of the backend: cost, correctness, order, memory, communication hidden over an emulated link.

Usage: python benchmarks/gpu.py [--budget SECONDS] [--parts PART ...] [--out FOLDER]
       python benchmarks/gpu.py --dry-run     every part, tiny, on a CPU: does it run? Measures nothing
       python benchmarks/gpu.py --table       the page from the file of figures, without measuring

Needs torch with CUDA, Triton and NumPy, and a checkout of this repository: the package need not be installed, nor its
other dependencies. It is taken from the checkout whatever else is installed. One device, 460 seconds.

machine     versions, and the rates of a product and of a copy (gpu_bench/machine.py)
prefill     steps over emulated links, against plain Inductor, its own overlap, and the bound; the order of launches,
            waits and compute in each program (gpu_bench/links.py, order.py)
training    the same, forward and backward
cost        step time and peak memory with nothing to hide, against plain Inductor (gpu_bench/cost.py)
correct     outputs and gradients against eager, by NCCL's group of one rank (gpu_bench/correct.py)
graphs      CUDA graphs: right, and how fast (gpu_bench/graphs.py)
calibrate   `farskip calibrate` on this device (gpu_bench/calibration.py)

Each part is a process with its own limit, in this order as far as the budget goes; what a part had when it was stopped
is kept. Figures go to docs/gpu_figures.json, the page to docs/gpu_figures.md, or into --out, with the parts' logs. A
dry run never writes into docs/. The last lines are the targets (gpu_bench/targets.py), met or missed by how much. Exit
status: 0 all met; 1 not, or a part failed; 2 wrong usage, or no GPU.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
import time
from pathlib import Path

from common import DOCS, processor, replace
from gpu_bench.checkout import use_checkout

OK, WRONG, USAGE = 0, 1, 2
JSON, PAGE = "gpu_figures.json", "gpu_figures.md"
PARTS = ("machine", "prefill", "training", "cost", "correct", "graphs", "calibrate")
BUDGET = 460.0


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    lines = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(
        description=lines[0], epilog="\n".join(lines[1:]), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for everything (default: 460)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="figures, page and logs (default: docs/)")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU; measures nothing")
    parser.add_argument("--table", action="store_true", help=f"only make {PAGE} from {JSON}")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)  # in a part's own process
    args = parser.parse_args(given)
    if not 0 < args.budget < float("inf"):
        parser.error("--budget must be a time in seconds")
    if args.dry_run and args.out is not None and args.out.resolve() == DOCS.resolve():
        parser.error("a dry run has no figures for docs/")
    return args


def main() -> int:
    args = arguments()
    use_checkout()
    from gpu_bench.device import device_of
    from gpu_bench.run import run_part

    try:
        if args.table:
            return rebuild(args.out or DOCS)
        if args.part is not None:
            run_part(args.part, args.out, args.budget, dry_run=args.dry_run)
            return OK
        name = device_of(dry_run=args.dry_run).name()
    except (OSError, ValueError, RuntimeError) as error:
        if args.part is not None:
            raise
        print(f"gpu.py: {error}", file=sys.stderr)
        return USAGE
    return measure(args, name)


def measure(args: argparse.Namespace, device: str) -> int:
    from gpu_bench.machine import versions
    from gpu_bench.results import Results
    from gpu_bench.run import run_parts

    start = time.monotonic()
    kept = args.out or (None if args.dry_run else DOCS)
    with tempfile.TemporaryDirectory(prefix="farskip-gpu-") as scratch:
        folder = args.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        known = ", ".join(f"{name} {text}" for name, text in versions().items())
        facts = {
            "device": f"none: dry run on a CPU ({device})" if args.dry_run else device,
            "host": processor(),
            "versions": known,
            "command": " ".join(["python", *sys.argv]),
            "date": str(datetime.date.today()),
        }
        results = Results(facts, args.dry_run)
        for part in run_parts(args.parts, folder, args.budget, dry_run=args.dry_run):
            print(f"{part.name}: {part.status}, {part.seconds:.0f} s", flush=True)
            results.parts.append(part)
            results.save(folder / JSON)
        return finish(results, folder, kept, time.monotonic() - start)


def finish(results: object, folder: Path, kept: Path | None, seconds: float) -> int:
    """The page, from the file that was written, and the verdicts."""
    from gpu_bench.page import write_page
    from gpu_bench.results import Results
    from gpu_bench.targets import judge

    again = Results.load(folder / JSON)
    assert again == results
    write_page(again, folder / PAGE, folder / JSON)
    if kept is not None and kept != folder:
        for name in (JSON, PAGE):
            replace(kept / name, (folder / name).read_text(encoding="utf-8"))
    verdicts = judge(again)
    print("\n".join([f"\n{seconds:.0f} s in all", *(one.line() for one in verdicts)]))
    passed = all(one.met for one in verdicts)
    dry = "dry run on a CPU, nothing was measured: " if again.dry else ""
    print(f"{dry}{'PASS' if passed else 'FAIL'}")
    return OK if passed else WRONG


def rebuild(folder: Path) -> int:
    from gpu_bench.page import write_page
    from gpu_bench.results import Results

    write_page(Results.load(folder / JSON), folder / PAGE, folder / JSON)
    return OK


if __name__ == "__main__":
    sys.exit(main())
