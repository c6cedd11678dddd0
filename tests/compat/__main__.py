# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.compat`: build each environment, ask it, write what came of it.

In:    `--only NAME` (may be given more than once), `--keep`, `--workers N`.
Out:   one line for each environment, docs/compat.json, the table in docs/compat.md; exit status 1 if any row of this
       run has not passed, be it for want of a version on the index.
Never: lets one environment stop the others; what it has made lies under `.compat/` only.

Each environment is removed once it is done, since one takes several gigabytes, unless `--keep` is given; then the next
run takes it as it is. Reports and logs stay in `.compat/reports/`. pip's own settings are yours (`PIP_EXTRA_INDEX_URL`
for an index with builds for CPUs).
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.compat.build import ROOT, NotAvailable, NotBuilt, build
from tests.compat.defects import Defect, confirmed
from tests.compat.environments import ENVIRONMENTS, PRIVATE, Environment
from tests.compat.outcome import NOT_BUILT, PASSED, UNAVAILABLE, Outcome, Tally, outcome, tally
from tests.compat.page import load, merge, result, save, with_table

FOLDER = ROOT / ".compat"
RESULTS = ROOT / "docs" / "compat.json"
PAGE = ROOT / "docs" / "compat.md"
LIMIT = 3600.0
"""Seconds after which the tests of one environment are ended."""


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; returns the exit status."""
    names = [one.name for one in ENVIRONMENTS]
    parser = argparse.ArgumentParser(prog="python -m tests.compat", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"one of {', '.join(names)}")
    parser.add_argument("--keep", action="store_true", help="keep the environments for the next run")
    parser.add_argument("--workers", type=int, default=2, help="processes that run tests (default: 2)")
    chosen = parser.parse_args(arguments)
    found = []
    for environment in ENVIRONMENTS:
        if chosen.only and environment.name not in chosen.only:
            continue
        start = time.monotonic()
        workers = 1 if environment.alone else chosen.workers
        found.append(attempt(environment, workers, chosen.keep))
        print(f"{environment.name}: {result(found[-1])} ({time.monotonic() - start:.0f} s in all)", flush=True)
        for failure in found[-1].failures:
            print(f"    {failure}", flush=True)
        rows = merge(ENVIRONMENTS, load(RESULTS), found)
        save(RESULTS, rows)
        PAGE.write_text(with_table(PAGE.read_text(), rows))
    return int(any(one.status != PASSED for one in found))


def attempt(environment: Environment, workers: int, keep: bool) -> Outcome:
    """Build one environment, run its tests, and tell what came of it."""
    folder, reports = FOLDER / environment.name, FOLDER / "reports" / environment.name
    today = datetime.date.today().isoformat()
    reports.mkdir(parents=True, exist_ok=True)
    try:
        built = build(environment, folder)
        private = run(built.python, (PRIVATE,), reports / "private.xml", 1)
        core: Tally | None = None
        defects: list[Defect] = []
        reason = ""
        if private is not None and not private.failed:
            core = run(built.python, environment.tests, reports / "core.xml", workers)
        if core is not None and core.failed:
            defects = confirmed(built.python, built.versions["torch"])
        if private is None or (core is None and not private.failed):
            reason = f"no report; see .compat/reports/{environment.name}"
        return outcome(environment.name, today, built.versions, private, core, defects, reason)
    except NotAvailable as error:
        return Outcome(environment.name, UNAVAILABLE, today, reason=str(error))
    except NotBuilt as error:
        return Outcome(environment.name, NOT_BUILT, today, reason=str(error))
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def run(python: Path, tests: tuple[str, ...], report: Path, workers: int, chosen: str = "") -> Tally | None:
    """Return what pytest says of `tests`, or of those with the `chosen` markers; its log lies beside the report."""
    report.unlink(missing_ok=True)
    command = [str(python), "-m", "pytest", *tests, f"--junitxml={report}", "-p", "no:cacheprovider"]
    command += ["-m", chosen] if chosen else []
    command += ["-n", str(workers), "--dist", "loadgroup"] if workers > 1 else []
    with tempfile.TemporaryDirectory() as cache, report.with_suffix(".log").open("w") as log:
        variables = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=log, stderr=log, start_new_session=True)
        try:
            process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):  # and the ranks that it has started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return tally(report)


if __name__ == "__main__":
    sys.exit(main())
