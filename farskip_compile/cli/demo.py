# SPDX-License-Identifier: Apache-2.0
"""The command `farskip demo`: rewire models on two ranks of this machine, check them, and write a report.

Contract: exit status 0 if every check passed, 1 if one failed, 2 if the report can't be written. With `--json`, what
happens is shown on stderr, and stdout holds one JSON document and nothing else.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from farskip_compile.cli.options import AsJson, option
from farskip_compile.cli.output import cannot_write, show_document

if TYPE_CHECKING:
    from farskip_compile.demo.results import DemoCase, DemoComparison


def demo_command(
    as_json: AsJson = False,
    out: Annotated[Path, option("FOLDER", "For the report and the traces.")] = Path("out"),
) -> None:
    """Rewire MoE models, on two ranks of this machine, and check them against their hand-written FarSkip forms."""
    from farskip_compile.cli.progress import working
    from farskip_compile.cli.terminal import Terminal
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
    with working("starting") as work:

        def done(case: DemoCase | DemoComparison) -> None:
            with work.aside():
                console.print(case_lines(case, console))

        demo = run_demo(tell=work, done=done, command=shlex.join(["farskip", *sys.argv[1:]]))
    report.write_text(page(demo), encoding="utf-8")
    if demo.overlap is not None:
        demo.overlap.write_traces(out)
    console.print(closing(demo, report))
    if as_json:
        show_document({**demo.to_json(), "html": str(report)})
    if not demo.passed:
        raise typer.Exit(1)
