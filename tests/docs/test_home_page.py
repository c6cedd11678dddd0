"""The program of docs/index.md runs as it stands, and prints what the page says."""

from __future__ import annotations

import re
from pathlib import Path

from tests.programs import run_program

PAGE = (Path(__file__).parents[2] / "docs" / "index.md").read_text()


def test_its_program_runs(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    (printed,) = re.findall(r"```text\n(.*?)```", PAGE, re.S)
    (tmp_path / "home.py").write_text(program)
    done = run_program(["home.py"], tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == printed
