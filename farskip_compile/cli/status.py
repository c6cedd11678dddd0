# SPDX-License-Identifier: Apache-2.0
"""The command `farskip status DIR`: what running processes run, by the files that they leave in a folder.

Contract: exit status 0 if every model of every process that lives runs every row that was asked for, and all ranks
alike; 1 if one does not, or has not run yet, or a rank is missing; 2 if nothing runs, or if the folder or a file in it
can't be read. With `--json`, stdout holds one JSON document and nothing else, whatever the status. Processes are not
touched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from farskip_compile.cli.options import AsJson
from farskip_compile.cli.output import show, shown_errors


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
    """Show whether running processes run rewired: what each has compiled, and in what ranks differ.

    Exit status 0: every model of every process that lives runs every row that was asked for. 1: one does not, or has
    not run yet, or ranks differ or are missing. 2: nothing runs there, or a file can't be read.
    """
    from farskip_compile.records.processes import folder_of, read_folder
    from farskip_compile.tools.status.text import folder_status

    pid = int(where) if where.isdecimal() and not Path(where).is_dir() else None
    with shown_errors(status=2):
        found = read_folder(folder_of(pid) if pid is not None else Path(where), pid)
    show(as_json, found.to_json, lambda _: folder_status(found))
    if found.status:
        raise typer.Exit(found.status)
