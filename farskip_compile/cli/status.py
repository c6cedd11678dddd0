# SPDX-License-Identifier: Apache-2.0
"""The command `farskip status DIR`: what running processes have compiled, by the files that they leave in a folder.

Contract: exit status 0 if all processes run rewired and all ranks alike, 1 if not or if it can't be told, 2 if the
folder or a file in it can't be read. With `--json`, stdout holds one JSON document and nothing else, also for status 1.
Processes are not touched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from farskip_compile.cli.output import AsJson, show, shown_errors


def status_command(
    where: Annotated[
        str,
        typer.Argument(
            metavar="DIR|PID",
            help="The folder that FARSKIP_STATUS_DIR named when the program was started; or the number of one of its "
            "processes, or of torchrun, on this machine (Linux).",
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Show whether running processes run rewired: what each has compiled, and in what ranks differ."""
    from farskip_compile.report.processes import folder_of, read_folder
    from farskip_compile.report.processes_text import table

    pid = int(where) if where.isdecimal() and not Path(where).is_dir() else None
    with shown_errors(status=2):
        found = read_folder(folder_of(pid) if pid is not None else Path(where), pid)
    show(as_json, found.to_json, lambda _: table(found))
    if not found.rewired:
        raise typer.Exit(1)
