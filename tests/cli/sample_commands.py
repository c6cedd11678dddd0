# SPDX-License-Identifier: Apache-2.0
"""Commands that do what libraries and users do to the commands of this package; run as `python -m` this module.

They stand for real ones where only what surrounds a command is tested: nothing here imports torch.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from typing import Any

import typer

from farskip_compile.cli.command import Command, Continuing
from farskip_compile.cli.options import AsJson
from farskip_compile.cli.output import show, show_document
from farskip_compile.cli.progress import bars, working
from farskip_compile.cli.terminal import Terminal

LARGE = 20_000
app = typer.Typer(rich_markup_mode="markdown", add_completion=False)


def leaves(group: Any, above: str = "") -> dict[str, Any]:
    """The commands of a group and of the groups in it, by their words: `check serving`."""
    found = {}
    for name, command in group.commands.items():
        found |= leaves(command, f"{name} ") if hasattr(command, "commands") else {f"{above}{name}": command}
    return found


def chatter(when: str) -> None:
    """Everything that can get text to stdout."""
    print(f"{when}: print")
    sys.__stdout__.write(f"{when}: the real stdout\n")
    sys.__stdout__.flush()
    os.write(1, f"{when}: the descriptor\n".encode())
    subprocess.run([sys.executable, "-c", f"print('{when}: a process')"], check=True)


@app.command(cls=Command)
def talk(as_json: AsJson = False) -> None:
    chatter("before")
    show(as_json, lambda: {"answer": 42}, lambda console: "the answer is 42")
    chatter("after")


@app.command(cls=Command)
def refuse(as_json: AsJson = False) -> None:
    chatter("before")
    show_document({"refusal": "no"})
    raise typer.Exit(1)


@app.command(cls=Command)
def wait(as_json: AsJson = False) -> None:
    print("waiting", file=sys.stderr, flush=True)
    time.sleep(100)


@app.command(cls=Continuing)
def go_on() -> None:
    print("waiting", file=sys.stderr, flush=True)
    time.sleep(100)


@app.command(cls=Command)
def ask(as_json: AsJson = False) -> None:
    typer.confirm("waiting?", err=as_json)


@app.command(cls=Command)
def wait_with_a_spinner(as_json: AsJson = False) -> None:
    with working("first") as work:
        work("waiting")
        time.sleep(100)


@app.command(cls=Command)
def large(as_json: AsJson = False) -> None:
    def text(console: Any) -> str:
        return "\n".join(f"{number} of many lines" for number in range(LARGE))

    show(as_json, lambda: {"numbers": list(range(LARGE))}, text)


@app.command(cls=Command)
def large_text() -> None:
    for number in range(LARGE):
        typer.echo(f"{number} of many lines")


@app.command(cls=Command)
def load(module: str) -> None:
    importlib.import_module(module)


@app.command(cls=Command)
def steps(as_json: AsJson = False) -> None:
    console = Terminal(stderr=as_json)
    with working("silent where nobody looks") as work:
        time.sleep(0.3)
        work("one: [/x] \x1b[2J")
        work("one: [/x] \x1b[2J")
        time.sleep(0.3)
        with work.aside():
            console.print("a result")
        work("two")
        time.sleep(0.3)
    with bars({"a": "part a", "b": "part b"}) as show_bar:
        for part in ("a", "b"):
            for done in range(3):
                show_bar(part, done, 2)
                time.sleep(0.1)
    if as_json:
        show_document({"bars": os.environ.get("TQDM_DISABLE")})


if __name__ == "__main__":
    app(prog_name="sample")
