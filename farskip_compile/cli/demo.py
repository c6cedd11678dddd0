# SPDX-License-Identifier: Apache-2.0
"""The command `farskip demo`: rewire models on two ranks of this machine, check them, and write a report.

Contract: exit status 0 if every check passed, 1 if one failed, 2 if the report can't be written. With `--json`, what
happens is shown on stderr, and stdout holds one JSON document and nothing else.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from farskip_compile.cli.output import cannot_write


def demo_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("out"),
) -> None:
    """Rewire MoE models, on two ranks of this machine, and check them against their hand-written FarSkip forms."""
    from farskip_compile.cli.terminal import Terminal, plain
    from farskip_compile.demo import run_demo
    from farskip_compile.demo.render import case_lines, closing, page

    console = Terminal(stderr=as_json)
    report = out / "farskip_demo.html"
    try:  # before a minute of work, not after it
        out.mkdir(parents=True, exist_ok=True)
        report.touch()
    except OSError as error:
        raise cannot_write(report, error, "--out") from None
    console.print("This takes a minute or so; most of it is Inductor building kernels the first time.", style="dim")
    with console.status("starting") as status:
        demo = run_demo(
            tell=lambda text: status.update(plain(text)),
            done=lambda case: console.print(case_lines(case, console)),
            command=shlex.join(["farskip", *sys.argv[1:]]),
        )
    report.write_text(page(demo), encoding="utf-8")
    if demo.overlap is not None:
        demo.overlap.write_traces(out)
    console.print(closing(demo, report))
    if as_json:
        typer.echo(json.dumps({**demo.to_json(), "html": str(report)}, indent=1))
    if not demo.passed:
        raise typer.Exit(1)
