# SPDX-License-Identifier: Apache-2.0
"""`python -m farskip_compile`, and completion in shells."""

from __future__ import annotations

import enum
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from farskip_compile.cli import app
from tests.cli.sample_commands import leaves
from tests.cli.terminals import FARSKIP, environment, with_pipes

GROUP = typer.main.get_command(app)
INSTALLED = Path(FARSKIP[0]).parent / "farskip"


def enumerations() -> Iterator[tuple[str, str, list[str], str]]:
    """Command, option, its values, and its help: all whose type is an enumeration, found in the signatures."""

    def values(kind: Any) -> list[str]:
        if inspect.isclass(kind) and issubclass(kind, enum.Enum):
            return [one.value for one in kind]
        if typing.get_origin(kind) is typing.Literal:
            return list(typing.get_args(kind))
        return next(filter(None, map(values, typing.get_args(kind))), [])

    for name, command in sorted(leaves(GROUP).items()):
        kinds = typing.get_type_hints(inspect.unwrap(command.callback))
        for parameter in command.params:
            if found := values(kinds.get(parameter.name)):
                yield name, parameter.opts[0], found, parameter.help


OPTIONS = list(enumerations())


def asked(line: str) -> dict[str, str]:
    """What bash puts into the environment to ask for what may stand at the end of `line`."""
    return {"_FARSKIP_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}


def completed(line: str) -> list[str]:
    """The answer of a new process, as in a shell."""
    done = with_pipes(FARSKIP, env=environment(**asked(line)))
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def completed_here(line: str) -> list[str]:
    """The same without a process, which takes half a second."""
    done = CliRunner().invoke(app, [], env=asked(line), prog_name="farskip")
    assert done.exit_code == 0, done.output
    return done.stdout.split()


def test_the_module_is_the_command() -> None:
    module = with_pipes([*FARSKIP, "--help"])
    assert module.returncode == 0
    assert "Usage: farskip [OPTIONS] COMMAND" in module.stdout
    wrong = with_pipes([*FARSKIP, "explain", "mixtral", "--connectivity", "some"])
    assert wrong.returncode == 2
    assert "'some' is not one of" in wrong.stderr
    if INSTALLED.exists():
        assert with_pipes([str(INSTALLED), "--help"]).stdout == module.stdout


def test_options_with_fixed_values_are_many() -> None:
    """So that the tests below are about something."""
    assert {(command, option) for command, option, _, _ in OPTIONS} >= {
        ("explain", "--connectivity"),
        ("heal", "--connectivity"), ("heal", "--recipe"), ("heal", "--loss-on"), ("heal", "--phase"),
        ("heal", "--dtype"), ("heal", "--precision"), ("heal", "--inner"),
        ("simulate", "--phase"), ("simulate", "--exchange"), ("simulate", "--products"), ("evaluate", "--inner"),
        ("evaluate", "--dtype"), ("check serving", "--dtype"), ("calibrate", "--only"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("command", "option", "values", "said"),
    OPTIONS,
    ids=lambda one: one if isinstance(one, str) and len(one) < 20 else "",
)
def test_values_are_in_help_and_in_completion(command: str, option: str, values: list[str], said: str) -> None:
    assert set(values) <= set(re.findall(r"[\w-]+", said))
    assert completed_here(f"farskip {command} {option} ") == values
    assert completed_here(f"farskip {command} {option} {values[-1][:3]}")[-1] == values[-1]


def test_commands_options_and_models_are_completed() -> None:
    assert sorted(completed("farskip ")) == sorted(GROUP.commands)
    assert completed("farskip check s") == ["serving"]
    assert completed("farskip calibrate out.json --dtype bf") == ["bfloat16"]
    assert completed("farskip heal --data one two --gradient") == ["--gradient-checkpointing"]
    assert completed("farskip explain qw") == ["qwen3_moe"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed(shell: str, tmp_path: Path) -> None:
    # typer asks the parent process for the shell, which here is pytest; with this it takes it as an argument
    home = environment(HOME=str(tmp_path), _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    done = with_pipes([*FARSKIP, "--install-completion", shell], env=home)
    assert done.returncode == 0, done.stderr
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "_FARSKIP_COMPLETE" in written
    assert "python" not in written, "it completes `farskip`, however it was installed"
    assert f"_FARSKIP_COMPLETE=complete_{shell}" in with_pipes([*FARSKIP, "--show-completion", shell], env=home).stdout
