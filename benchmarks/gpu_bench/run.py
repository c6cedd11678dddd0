# SPDX-License-Identifier: Apache-2.0
"""The parts of a run, each a process with a limit of its own, so that one that hangs or crashes takes no other with it.

In:    which parts, a budget in seconds, a folder for logs.
Out:   each `Part` when it has ended, with the rows that it had by then.
Never: runs two parts at once on a GPU; lets a process live on after its limit.

A part that loses the device's context, or waits for ever in a collective, can't be stopped from inside. Parts are in
the order of what matters, should the budget end. A dry run measures nothing, so there two parts share the processor.

Algorithm:
1. Start `gpu.py --part NAME` in a session of its own; what it writes goes to a log.
2. Wait until it has ended, or its limit or the budget has; then end its session, compile workers too.
3. Read the rows that it has kept, a line each.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gpu_bench import calibration, correct, cost, graphs, links, machine
from gpu_bench.bench import Bench
from gpu_bench.device import device_of
from gpu_bench.results import DONE, FAILED, LATE, LEFT, Part, Row, decoded, encoded
from gpu_bench.sizes import DRY, GPU

PARTS: dict[str, tuple[Callable[[Bench], None], float]] = {
    "machine": (machine.measure, 40),
    "prefill": (links.prefill, 110),
    "training": (links.training, 150),
    "cost": (cost.measure, 90),
    "correct": (correct.measure, 100),
    "graphs": (graphs.measure, 50),
    "calibrate": (calibration.measure, 50),
}
"""Name of a part: what measures it, and its limit in seconds on a GPU."""
DRY_LIMIT = 240.0
"""Of each part of a dry run: a slow CPU is not an error."""
USED = 0.85
"""Fraction of a limit after which a part begins nothing more."""
LEAST = 10.0
"""Seconds that a part needs at least."""
SCRIPT = Path(__file__).parents[1] / "gpu.py"
TAIL = 1500
"""Characters of a log that are kept of a part that failed."""


def run_part(name: str, folder: Path, seconds: float, *, dry_run: bool) -> None:
    """In a part's own process: measure it, and append each row to `FOLDER/NAME.rows`."""
    path = folder / f"{name}.rows"

    def keep(row: Row) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(encoded([row])[0]) + "\n")

    bench = Bench(
        device_of(dry_run=dry_run),
        DRY if dry_run else GPU,
        keep,
        folder,
        time.monotonic() + USED * seconds,
        USED * seconds,
    )
    PARTS[name][0](bench)


def run_parts(names: Sequence[str], folder: Path, budget: float, *, dry_run: bool) -> Iterator[Part]:
    """See the module's contract."""
    end = time.monotonic() + budget

    def run(name: str) -> Part:
        limit = min(DRY_LIMIT if dry_run else PARTS[name][1], end - time.monotonic())
        if limit < LEAST:
            return Part(name, LEFT, 0.0, why="the budget was spent")
        return _in_a_process(name, folder, limit, dry_run=dry_run)

    with ThreadPoolExecutor(2 if dry_run else 1) as pool:
        yield from pool.map(run, names)


def _in_a_process(name: str, folder: Path, limit: float, *, dry_run: bool) -> Part:
    rows, log = folder / f"{name}.rows", folder / f"{name}.log"
    rows.write_text("")
    command = [sys.executable, str(SCRIPT), "--part", name, "--out", str(folder), "--budget", f"{limit:.0f}"]
    start = time.monotonic()
    with log.open("w") as written:  # 1
        process = subprocess.Popen(
            [*command, "--dry-run"] if dry_run else command,
            stdout=written, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(limit)  # 2
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
    took = time.monotonic() - start
    whole = rows.read_text().rpartition("\n")[0]  # the last line may be half written
    known = decoded(json.loads(line) for line in whole.splitlines())  # 3
    if status == 0:
        return Part(name, DONE, took, known)
    how = LATE if took >= limit else FAILED
    end = log.read_text(errors="replace")[-TAIL:]
    return Part(name, how, took, known, f"{how} after {took:.0f} s (status {status}): {end}")
