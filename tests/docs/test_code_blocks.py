# SPDX-License-Identifier: Apache-2.0
"""Every code block of README.md and docs/ runs as it stands, or says which test runs it, or is none to be run.

`blocks.py` has the marks. What a block that names tests calls of this package must occur in these tests, unless they
read the page; and commands, their options, targets of make and extras are there wherever a page names them.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import typer.core
from typer.main import get_command

from farskip_compile.cli import app
from tests.docs.blocks import PAGES, ROOT, Block, Unclear, all_blocks, blocks, commands, inline_code
from tests.integrations.libraries import LIBRARIES, beside
from tests.programs import run_program

BLOCKS = all_blocks()
PRINTED = [after.text if after.becomes == "prints" else "" for after in BLOCKS[1:]] + [""]
"""After each block, what it prints; an empty text where the page does not say."""
RUN = {(block.text, says): block for block, says in zip(BLOCKS, PRINTED, strict=True) if block.becomes == "run"}
"""What stands on several pages is run once."""
FRAGMENTS = [block for block in BLOCKS if block.becomes == "fragment"]
ITSELF = "tests/docs/test_code_blocks.py::test_commands_exist"
LIMIT = 400.0
"""Seconds of a block."""


@pytest.mark.parametrize(
    ("block", "says"), [pytest.param(block, says, id=str(block)) for (_, says), block in RUN.items()]
)
def test_it_runs(block: Block, says: str, tmp_path: Path) -> None:
    if "transformers" in block.text:
        pytest.importorskip("transformers")
    settings = {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    for library in LIBRARIES:
        if re.search(rf"^\s*(from|import) {library}\b", block.text, re.MULTILINE):
            settings["PYTHONPATH"] = beside(library)
    if block.language == "python":
        (tmp_path / "block.py").write_text(block.text)
        done = run_program(["block.py"], tmp_path, LIMIT, **settings)
    else:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        command = ["bash", "-euo", "pipefail", "-c", block.text]
        variables = {**os.environ, "PATH": path, **settings}
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert not says or done.stdout == says


@pytest.mark.parametrize("block", FRAGMENTS, ids=str)
def test_who_is_said_to_cover_it_does(block: Block) -> None:
    texts = []
    for name in block.tests:
        path, _, function = name.partition("::")
        text = (ROOT / path).read_text()
        defined = {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}
        assert function in defined, f"{block} names {name}"
        assert function.startswith("test_"), name
        texts += [text, *helpers(text)]
    if ITSELF in block.tests or any(block.page.name in text for text in texts):
        return
    used = set(ours(block))
    assert {name for name in used if not any(re.search(rf"\b{name}\b", text) for text in texts)} == set()


def test_commands_exist() -> None:
    context = typer.Context(get_command(app))
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    seen, wrong = 0, []
    for where, line in every_command():
        if made := re.match(r"make ([a-z][a-z-]*)", line):
            seen += 1
            if made[1] not in targets:
                wrong.append((where, line))
        for named in re.findall(r"(?:\.|farskip-compile)\[([\w,]+)\]", line):
            seen += 1
            if not set(named.split(",")) <= set(extras):
                wrong.append((where, line))
        for name, options in re.findall(r"(?:^|--no-python )farskip ([a-z][a-z-]*|--\w+)([^|&]*)", line):
            seen += 1
            command = get_command(app) if name.startswith("--") else context.command.get_command(context, name)
            if isinstance(command, typer.core.TyperGroup):
                command = command.get_command(context, (options.split() or [""])[0]) or command
            known = {
                option for one in getattr(command, "params", ()) for option in (*one.opts, *one.secondary_opts)
            } | {"--help"}
            asked = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", f"{name} {options}"))
            if command is None or not asked <= known:
                wrong.append((where, line))
    assert wrong == []
    assert seen >= 40


def test_the_readme_starts_with_the_two_commands_and_stays_short() -> None:
    first = next(block for block in BLOCKS if block.page == PAGES[0])
    assert [line.split("#")[0].split() for line in first.text.splitlines()] == [["make", "demo"], ["make", "test"]]
    assert first.line < 10
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 150


def test_marks_that_say_nothing_are_noticed() -> None:
    page = ROOT / "docs" / "page.md"
    for text, says in (
        ("```\nx\n```\n", "no language needs a mark"),
        ("    x\n", "no language needs a mark"),
        ("```ruby\nx\n```\n", "ruby needs a mark"),
        ("<!-- shown -->\n\nwords\n", "a block must follow"),
        ("<!-- fragment: tests/a.py::test_b -->\n", "a block must follow"),
        ("<!-- prints -->\n\n```text\nx\n```\n", "no block that is run"),
        ("<!-- shown-->\n\n```text\nx\n```\n", "not a mark"),
        ("<!-- fragments: a -->\n\n<!-- fragments: b -->\n", "two marks"),
        ("words <!-- shown -->\n", "lines of its own"),
    ):
        with pytest.raises(Unclear, match=says):
            list(blocks(page, text))
    text = "<!-- fragments: a, b -->\n\n```\nx\n```\n\n<!-- shown -->\n\n    y\n"
    assert [(one.becomes, one.tests) for one in blocks(page, text)] == [("fragment", ("a", "b")), ("shown", ())]


def every_command() -> Iterator[tuple[str, str]]:
    """Shell of all pages, line by line, and what stands in their text as code; each with its place."""
    for block in BLOCKS:
        if not block.language or block.language == "sh":
            yield from ((str(block), line) for line in commands(block))
    for page in PAGES:
        yield from ((page.name, code) for code in inline_code(page.read_text(encoding="utf-8")))


def helpers(text: str) -> Iterator[str]:
    """The files of tests that a test imports from."""
    for name in re.findall(r"^from (tests[\w.]*) import", text, re.MULTILINE):
        file = ROOT / f"{name.replace('.', '/')}.py"
        if file.exists():  # else a package, whose __init__ has nothing
            yield file.read_text()


def ours(block: Block) -> Iterator[str]:
    """What a block uses of this package: names, options of the backend, commands."""
    for line in commands(block) if block.language != "python" else ():
        words = shlex.split(line.replace("[", "").replace("]", ""))
        yield from (words[at + 1] for at, word in enumerate(words[:-1]) if word == "farskip")
    if block.language != "python":
        return
    for node in ast.walk(ast.parse(textwrap.dedent(block.text))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("farskip_compile"):
            yield from (alias.name for alias in node.names)
        elif (
            isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "farskip_compile"
        ):
            yield node.attr
        elif isinstance(node, ast.keyword) and node.arg == "options" and isinstance(node.value, ast.Dict):
            yield from (key.value for key in node.value.keys if isinstance(key, ast.Constant))
