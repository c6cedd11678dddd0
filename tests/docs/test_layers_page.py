# SPDX-License-Identifier: Apache-2.0
"""docs/layers.md runs as it stands, and the tests that it names are there."""

from __future__ import annotations

import re
from pathlib import Path

from tests.programs import run_program

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "layers.md").read_text()


def test_its_programs_run(tmp_path: Path) -> None:
    programs = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(programs) == 2
    (tmp_path / "layers.py").write_text("".join(programs))
    done = run_program(["layers.py"], tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["('r1',)"]


def test_the_tests_that_it_names_are_there() -> None:
    source = "".join(
        file.read_text() for folder in ("regional", "distributed") for file in (ROOT / "tests" / folder).glob("*.py")
    )
    for name in re.findall(r"`(test_\w+)`", PAGE):
        assert f"def {name}(" in source, name
    for path in re.findall(r"`(tests/[\w/]+\.py)`", PAGE):
        assert (ROOT / path).exists(), path
