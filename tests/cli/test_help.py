# SPDX-License-Identifier: Apache-2.0
"""`--help` of every command: whole at any width, with its brackets and paragraphs, and plain where colours are not
wanted."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from farskip_compile.cli import app
from farskip_compile.cli.command import Command
from tests.cli.sample_commands import leaves
from tests.cli.terminals import COLOURS, FARSKIP, environment, in_terminal, with_pipes

GROUP = typer.main.get_command(app)
LEAVES = leaves(GROUP)
COMMANDS = sorted(LEAVES)
FRAME = re.compile(r"[╭╮╰╯─│]")


def shown(*args: str, columns: int) -> str:
    done = CliRunner().invoke(
        app,
        [word for arg in args for word in arg.split()] + ["--help"],
        env={"COLUMNS": str(columns)},
        prog_name="farskip",
    )
    assert done.exit_code == 0, done.output
    return done.stdout


def words(text: str) -> Counter[str]:
    return Counter(FRAME.sub(" ", text).split())


def one_line(text: str) -> str:
    return " ".join(text.split())


def helps(command: str) -> list[str]:
    """What was written to be read: the help of each parameter, and the paragraphs of the command's own; as Markdown
    is shown, without the marks of code."""
    found: Any = LEAVES[command]
    written = [parameter.help for parameter in found.params if getattr(parameter, "help", None)]
    paragraphs = inspect.cleandoc(found.callback.__doc__).split("\n\n")
    return [one_line(re.sub(r"```\w*|`", "", text)) for text in (*written, *paragraphs)]


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_cut_off_or_eaten(command: str, columns: int) -> None:
    narrow, wide = shown(command, columns=columns), shown(command, columns=1000)
    assert max(map(len, narrow.splitlines())) <= columns
    assert "…" not in narrow
    assert words(narrow) == words(wide), "narrower means more lines, not fewer or other words"
    found: Any = LEAVES[command]
    for parameter in found.params:
        for name in (*parameter.opts, *parameter.secondary_opts):
            assert not name.startswith("-") or name in words(narrow), name
    flat = one_line(FRAME.sub(" ", wide))
    for text in helps(command):
        assert text in flat


def test_the_example_of_a_configuration_keeps_its_tables_and_lines() -> None:
    for columns in (80, 120):
        lines = [line.strip() for line in shown("heal", columns=columns).splitlines()]
        for line in ("[data]", 'train = ["text/*.txt"]', "batch_size = 8", "[distill]", 'output = "healed"'):
            assert line in lines
        assert '{"messages": [{"role": ..., "content": ...}]}' in lines
        assert lines.index("[data]") < lines.index("[distill]")
    assert "TASK[:METRIC]=DROP" in shown("evaluate", columns=80)


def test_the_list_of_commands_has_all_of_them() -> None:
    text = shown(columns=80)
    assert all(name in words(text) for name in GROUP.commands)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_every_command_ends_quietly() -> None:
    """Where each of them gets Ctrl-C, closed pipes, missing packages and JSON alone from."""
    assert all(isinstance(command, Command) for command in LEAVES.values())


@pytest.mark.parametrize("columns", [80, 120])
def test_in_a_terminal_as_wide_as_it_is(columns: int) -> None:
    found = in_terminal([*FARSKIP, "heal", "--help"], columns=columns)
    assert found.status == 0
    assert COLOURS.search(found.raw)
    assert max(map(len, found.text.splitlines())) == columns
    assert words(found.text) == words(shown("heal", columns=columns))


@pytest.mark.parametrize("wish", [{"NO_COLOR": "1", "TERM": "xterm-256color"}, {"TERM": "dumb"}])
@pytest.mark.parametrize("args", [["heal", "--help"], ["heal"], ["check", "families", "--nothing"]], ids=" ".join)
def test_no_colours_where_none_are_wanted(args: list[str], wish: dict[str, str]) -> None:
    found = in_terminal([*FARSKIP, *args], env=environment(**wish))
    assert not COLOURS.search(found.raw)
    if wish["TERM"] == "dumb":
        assert "\x1b" not in found.raw
    assert max(map(len, found.text.splitlines())) <= 80
    assert "heal" in found.text or "--nothing" in found.text


def test_in_a_pipe() -> None:
    found = with_pipes([*FARSKIP, "heal", "--help"])
    assert (found.returncode, found.stderr) == (0, "")
    assert "\x1b" not in found.stdout
    assert "[data]" in found.stdout
    assert words(found.stdout) == words(shown("heal", columns=80))
