# SPDX-License-Identifier: Apache-2.0
"""Each example is short, and its command is the same in the script, on the page and in the Makefile."""

from __future__ import annotations

import re

from tests.examples.notebooks import NOTEBOOKS
from tests.examples.running import EXAMPLES, ROOT

LONGEST = 80
"""Lines of a script."""
PAGE = (EXAMPLES / "README.md").read_text(encoding="utf-8")


def test_five_scripts_of_at_most_80_lines() -> None:
    lines = {file.name: len(file.read_text(encoding="utf-8").splitlines()) for file in EXAMPLES.glob("*.py")}
    assert len(lines) == 5
    assert {name: count for name, count in lines.items() if count > LONGEST} == {}


def test_each_is_run_by_the_same_command_everywhere() -> None:
    rule = re.search(r"^examples:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert rule is not None
    said = []
    for script in sorted(EXAMPLES.glob("*.py")):
        command = re.search(r"^    ((?:python|torchrun) .*examples/\w+\.py)", script.read_text(), re.MULTILINE)
        assert command is not None, script.name
        assert command[1].endswith(script.name)
        assert f"`{command[1]}`" in PAGE
        said.append(command[1].replace("python", "$(PY)", 1).replace("torchrun", "$(VENV)/bin/torchrun"))
    assert sorted(said) == sorted(line for line in rule[1].replace("\t", "").splitlines() if "examples/" in line)


def test_the_page_names_each_file() -> None:
    named = set(re.findall(r"^\| \[(\S+)\]\(\1\)", PAGE, re.MULTILINE))
    assert named == {file.name for file in (*EXAMPLES.glob("*.py"), *NOTEBOOKS)}
