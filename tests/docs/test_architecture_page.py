# SPDX-License-Identifier: Apache-2.0
"""docs/ARCHITECTURE.md runs as it stands, prints what it says, and names places that exist."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
from pathlib import Path

import torch

from tests.structure.test_floors import FLOORS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "ARCHITECTURE.md").read_text()


def test_the_run_prints_what_the_page_says(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    (printed,) = re.findall(r"```text\n(.*?)```", PAGE, re.S)
    script = tmp_path / "run.py"  # Dynamo reads the source
    script.write_text(program)
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        runpy.run_path(str(script))
    assert out.getvalue() == printed
    body = program[program.index("class Toy") :]
    assert len([line for line in body.splitlines() if line.strip()]) <= 40


def test_its_places_exist() -> None:
    for place in re.findall(r"`((?:passes|farskip_compile)/[\w/.]*)`", PAGE):
        assert (ROOT / place).exists(), place
    rooms = re.findall(r"`([\w/]+)/`", PAGE)
    assert rooms
    for room in rooms:
        assert (ROOT / "farskip_compile" / room).is_dir() or (ROOT / room).is_dir(), room


def test_its_table_is_the_one_that_holds_the_imports() -> None:
    lines = re.findall(r"^\| (\d) \| (.*?) \|", PAGE, re.M)
    floors = [tuple(re.findall(r"`(\w+)`", rooms)) for _, rooms in reversed(lines)]
    held = [tuple(room for room in floor if room != "__main__") for floor in FLOORS]
    assert floors == held
