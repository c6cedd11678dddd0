# SPDX-License-Identifier: Apache-2.0
"""Makes docs/reference/cli.md of the command line's own help: `python docs/_site/cli_page.py`, after each change of it.

Comes in: `farskip_compile.cli`, which needs neither torch nor a model. Goes out: the page, as Typer's own command
(`typer ... utils docs`) writes it, with whole sentences where Typer cuts after 45 letters. Needs typer and rich.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import typer
from typer.cli import get_docs_for_click

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "cli.md"
COVERED = "<!-- fragments: tests/docs/test_site.py::test_the_command_line_is_what_its_page_says -->"
"""What runs the blocks of the page (tests/docs/blocks.py)."""


def shorten(group: Any) -> None:
    """Give each command of a group, and of the groups in it, its first paragraph as the short help."""
    for command in group.commands.values():
        first = inspect.cleandoc(command.help or "").split("\n\n")[0]
        command.short_help = " ".join(first.split())
        if hasattr(command, "commands"):
            shorten(command)


def cli_page() -> str:
    """The text of the page."""
    from farskip_compile.cli import app

    group = typer.main.get_group(app)
    shorten(group)
    context = typer.Context(group, info_name="farskip")
    page = get_docs_for_click(obj=group, ctx=context, name="farskip", title="Command line")
    title, text = page.split("\n", 1)
    return f"{title}\n\n{COVERED}\n{text}"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(cli_page())
