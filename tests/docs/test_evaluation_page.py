# SPDX-License-Identifier: Apache-2.0
"""docs/evaluation.md is true: its files and commands run as they stand, and the table is the one on the page."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.programs import run_program

pytest.importorskip("lm_eval")

PAGE = (Path(__file__).parent.parent.parent / "docs" / "evaluation.md").read_text()
BLOCKS = dict(re.findall(r"^```\w+\n# (\S+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
COMMANDS = re.findall(r"^    ((?:python|farskip) .*)$", PAGE, re.MULTILINE)
(TABLE,) = re.findall(r"^```text\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def shape(text: str) -> list[str]:
    """Without the digits that another machine rounds in another way."""
    return [re.sub(r"(?<=\d\.)\d+(?= |$)", "#", line.rstrip()) for line in text.splitlines()]


def test_the_page_runs(tmp_path: Path) -> None:
    for name, text in BLOCKS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert [command.split()[0:2] for command in COMMANDS] == [
        ["python", "make_checkpoints.py"],
        ["farskip", "evaluate"],
        ["python", "-m"],
        ["python", "scores.py"],
    ]
    farskip = str(Path(sys.executable).parent / "farskip")
    said = []
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        file = [farskip] if program == "farskip" else []
        done = run_program([*file, *arguments], tmp_path, 400, OMP_NUM_THREADS="1", COLUMNS="80")
        assert done.returncode == 0, (command, done.stdout[-3000:], done.stderr[-3000:])
        said.append(done.stdout)
    assert shape(said[1]) == shape(TABLE)
    score = re.search(r"acc +(\d\.\d+) ±", said[1])[1]
    assert re.search(rf"\|capitals\|.*\|acc .*\|{score}\|", said[2])
    first, evidence = said[3].strip().splitlines()
    assert f"{float(first.split()[0]):.4f}" == score
    assert "'left_out': {'moe.0': ['a0'], 'attention.1': ['r0'], 'moe.1': ['a1']}" in evidence
    assert "'graphs': 3" in evidence
