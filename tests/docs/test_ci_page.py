# SPDX-License-Identifier: Apache-2.0
"""docs/ci.md is true: its programs run as they stand, its workflow runs just these, its failure is the real one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from farskip_compile import testing
from farskip_compile.models import build
from farskip_compile.testing import assert_rewired, strategies
from tests.programs import run_program

PAGE = (Path(__file__).parent.parent.parent / "docs" / "ci.md").read_text()
BLOCKS = {
    name: f"# {name}\n{text}"
    for name, text in re.findall(r"^```\w+\n# (\S+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
}
WORKFLOW = ".github/workflows/farskip.yml"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the page."""
    folder = tmp_path_factory.mktemp("project")
    for name, text in BLOCKS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def commands() -> list[list[str]]:
    """What the workflow runs of the project."""
    (job,) = yaml.safe_load(BLOCKS[WORKFLOW])["jobs"].values()
    lines = [step["run"] for step in job["steps"] if "run" in step]
    return [line.split()[1:] for line in lines if line.startswith("python ")]


def run(folder: Path, arguments: list[str]) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout


def test_every_file_is_run_by_the_workflow() -> None:
    run_there = {part for command in commands() for part in command}
    assert set(BLOCKS) - {WORKFLOW, "my_model.py"} <= run_there


def test_the_tests_of_the_page_pass(project: Path) -> None:
    command = next(command for command in commands() if "pytest" in command)
    done = run_program([*command, "-q", "-p", "no:cacheprovider"], project, 400, OMP_NUM_THREADS="1", PYTEST_ADDOPTS="")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert " passed" in done.stdout


def test_the_ranks_of_the_page_agree(project: Path) -> None:
    command = next(command for command in commands() if "check_ranks.py" in command)
    said = run(project, command)  # two processes write at once, so lines may run into each other
    assert said.count("rank 0 agrees") == said.count("rank 1 agrees") == 1


def test_the_failure_on_the_page_is_what_is_printed() -> None:
    model = build("deepseek_v3", layers=("moe", "moe"))
    compiled = torch.compile(model, backend="farskip", options={"connectivity": "mlp"})
    with pytest.raises(AssertionError) as caught:
        assert_rewired(compiled, torch.zeros(1, 4, dtype=torch.long))
    shown = re.search(r"^    AssertionError: (.*?)\n\n", PAGE, re.DOTALL | re.MULTILINE)
    assert shown is not None
    lines = [line.removeprefix("    ") for line in shown.group(1).splitlines()]
    assert lines == str(caught.value).splitlines()


def test_everything_public_is_on_the_page() -> None:
    for name in testing.__all__:
        assert name in PAGE or name == "relative_difference", name
    for name in ("cases", "configs", "parallel_cases", "networks", "programs"):
        assert f"`{name}(" in PAGE
        assert name in strategies.__all__
