# SPDX-License-Identifier: Apache-2.0
"""Packages in versions outside of their ranges: one line with the name, the version found and those that work."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from farskip_compile.base.extras import INSTALLED_BY
from farskip_compile.versions import version_conflict
from tests.structure.project import EXTRAS, REQUIRED

FOUR = "transformers 4.57.0 is installed; farskip-compile works with transformers >=5.20,<6"
OLD = "torch 2.9.1 is installed; farskip-compile works with torch >=2.11,<2.16"
RANGES = {one.name: one.specifier for needed in (REQUIRED, *EXTRAS.values()) for one in needed}
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A new process, beside a package that calls itself transformers 4.57.0 and has the old names."""
    files = {
        "transformers/__init__.py": "from .modeling_utils import PreTrainedModel\nTrainerCallback = object\n",
        "transformers/configuration_utils.py": "class PretrainedConfig: ...\n",
        "transformers/modeling_utils.py": (
            "import torch\nfrom .configuration_utils import PretrainedConfig\n"
            "class PreTrainedModel(torch.nn.Linear): ...\n"
        ),
        "transformers/trainer.py": "class Trainer: ...\n",
        "transformers/trainer_utils.py": "PREFIX_CHECKPOINT_DIR = 'checkpoint'\n",
        "transformers-4.57.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: transformers\nVersion: 4.57.0\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def start(script: str, *args: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), *sys.path))}
        command = [sys.executable, "-W", "error::UserWarning", "-c", script, *args]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    return start


# transformers 4


@pytest.mark.parametrize("names", ["transformers.trainer, farskip_compile", "farskip_compile, transformers.trainer"])
def test_both_are_imported_in_either_order(run: Run, names: str) -> None:
    done = run(f"import {names}, farskip_compile.compiler.backend; print(transformers.PreTrainedModel.__name__)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "PreTrainedModel\n", "")


def test_its_models_and_its_trainer_are_refused_and_other_models_are_not(run: Run) -> None:
    done = run(
        "import farskip_compile, transformers, torch\n"
        "from farskip_compile.integrations.trainer import FarSkipCallback\n"
        "model = torch.nn.Sequential(transformers.PreTrainedModel(2, 2))\n"
        "for use in (lambda: farskip_compile.prepare(model), FarSkipCallback):\n"
        "    try: use()\n"
        "    except farskip_compile.ConfigError as error: print(error.reason, error.way_out, sep='|')\n"
        "print(farskip_compile.prepare(torch.nn.Linear(2, 2)).changes)\n"
    )
    assert done.stdout.splitlines() == [f"{FOUR}|pip install 'transformers>=5.20,<6'"] * 2 + ["()"], done.stderr


def test_a_command_says_it_before_it_imports_anything(run: Run) -> None:
    done = run("import sys, farskip_compile.cli as c\nsys.argv[0] = 'farskip'\nc.app()", "check", "families")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{FOUR}: pip install 'farskip-compile[hf]'\n"


# torch


def test_an_older_torch_is_one_line_and_not_a_name_that_is_missing(run: Run) -> None:
    script = "import torch, sys\ntorch.__version__ = '2.9.1'\n"
    done = run(f"{script}del torch._guards.CompileContext\nfrom farskip_compile import backend")
    assert done.stderr.splitlines()[-1].endswith(f"VersionError: {OLD}")
    done = run(f"{script}from farskip_compile.cli import app\napp()", "explain", "mixtral")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{OLD}\n")


def test_a_newer_torch_is_one_warning(run: Run) -> None:
    done = run(
        "import torch, warnings\ntorch.__version__ = '2.99.0.dev20270101'\n"
        "with warnings.catch_warnings(record=True) as found:\n"
        "    warnings.simplefilter('always')\n"
        "    torch.compile(torch.sin, backend='farskip', options={'inner': 'eager'})(torch.ones(1))\n"
        "    import farskip_compile.tools.prepare\n"
        "print(*[f'{one.category.__name__}: {one.message}' for one in found if 'farskip' in str(one.message)])"
    )
    line = OLD.replace("2.9.1", "2.99.0.dev20270101")
    assert done.stdout == f"FarSkipWarning: {line}\n", done.stderr


# Ranges


@pytest.mark.parametrize("package", ["torch", *INSTALLED_BY])
def test_versions_are_compared_as_pip_does(package: str) -> None:
    name = package.replace("_", "-")
    for version in (
        "0",
        "0.3",
        "0.4.11",
        "0.4.12",
        "0.4.13.post1",
        "0.5.0",
        "1.0",
        "2.11.0+cpu",
        "2.16",
        "3",
        "5.19.9",
    ):
        conflict = version_conflict(package, version)
        works = version in RANGES.get(name, SpecifierSet())
        assert (conflict is None) == works, (package, version)


def test_what_is_installed_here_works() -> None:
    assert [str(found) for name in RANGES if (found := version_conflict(name))] == []


@pytest.mark.parametrize(
    ("package", "version", "is_other_major", "is_older"),
    [
        ("transformers", "5.19.0", False, True),
        ("transformers", "6.0.0.dev0", True, False),
        ("peft", "0.16", False, True),
    ],
)
def test_what_is_outside(package: str, version: str, is_other_major: bool, is_older: bool) -> None:
    conflict = version_conflict(package, version)
    assert conflict is not None
    assert (conflict.is_other_major, conflict.is_older) == (is_other_major, is_older)


def test_a_package_that_is_not_installed_or_has_no_range_is_not_judged() -> None:
    assert version_conflict("vllm", "0.1") is None
    assert version_conflict("no_such_package") is None
    assert SpecifierSet(">=5.20,<6") == RANGES["transformers"]
