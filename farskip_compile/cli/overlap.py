"""The command `farskip overlap TRACE...`: how much communication a profile shows, and how much of it is exposed.

Contract: exit status 0 if there is a report, 1 if no trace holds a collective, 2 if a file is no usable trace or the
options don't fit the traces. With `--json`, stdout holds one JSON document and nothing else, also for status 1.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from farskip_compile.errors import FarSkipError
from farskip_compile.explain import text as render_text


def overlap_command(
    traces: Annotated[
        list[Path],
        typer.Argument(
            metavar="TRACE",
            exists=True,
            dir_okay=False,
            help="Chrome traces of torch.profiler, one for each rank (.json or .json.gz).",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with the timeline into this file.")] = None,
    merge: Annotated[
        Path | None, typer.Option(help="Write all ranks into one trace for Perfetto (.json or .json.gz).")
    ] = None,
    subtract: Annotated[
        bool,
        typer.Option(
            "--subtract-peer-wait", help="Count a collective from when its last rank joined; needs the traces of all."
        ),
    ] = False,
    copies: Annotated[
        bool, typer.Option("--copies/--no-copies", help="Whether copies and fills of GPU memory hide communication.")
    ] = True,
    everything: Annotated[bool, typer.Option("--all", help="Show every rank and every collective.")] = False,
) -> None:
    """Show how much communication is exposed: in flight while the rank computes nothing."""
    from farskip_compile.profiling import NoCollectivesError, TraceError, merge_traces, overlap, read_trace
    from farskip_compile.profiling.html_page import overlap_page
    from farskip_compile.profiling.text import report_text

    errors = Console(stderr=True)
    try:
        for path in (html, merge):
            if path is not None and any(path.resolve() == trace.resolve() for trace in traces):
                raise TraceError(f"{path} is one of the traces to read", way_out="give another name for the output")
        report = overlap([read_trace(path) for path in traces], subtract_peer_wait=subtract, count_copies=copies)
        if merge is not None:
            merge_traces(traces, merge)
        if html is not None:
            _write(html, overlap_page(report))
    except NoCollectivesError as error:
        if as_json:
            reason = {"error": type(error).__name__, "reason": error.reason, "way_out": error.way_out}
            typer.echo(json.dumps({"refusal": reason}, indent=1))
        else:
            errors.print(render_text.error(error))
        raise typer.Exit(1) from None
    except FarSkipError as error:
        errors.print(render_text.error(error))
        raise typer.Exit(2) from None
    if as_json:
        typer.echo(json.dumps({"refusal": None, **report.to_json()}, indent=1))
        return
    console = Console(highlight=False)
    console.print(report_text(report, console, everything=everything))
    for label, path in (("page", html), ("merged trace, for ui.perfetto.dev", merge)):
        if path is not None:
            console.print(f"{label}: {path}", soft_wrap=True)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise typer.BadParameter(f"can't write {path}: {error.strerror}", param_hint="--html") from None
