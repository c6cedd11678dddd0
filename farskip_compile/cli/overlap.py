# SPDX-License-Identifier: Apache-2.0
"""The command `farskip overlap TRACE...`: how much communication a profile shows, and how much of it is exposed.

Contract: exit status 0 if there is a report, 1 if no trace holds a collective, 2 if a file is not a usable trace or the
options don't fit the traces. With `--json`, stdout holds one JSON document and nothing else, also for status 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from farskip_compile.cli.options import AsJson, option
from farskip_compile.cli.output import cannot_write, show, show_document, shown_errors

MOST_GB = 1000


def overlap_command(
    traces: Annotated[
        list[Path],
        typer.Argument(
            metavar="TRACE",
            help="Chrome traces of torch.profiler, one for each rank (.json or .json.gz), or all of them in one file, "
            "as --merge and farskip demo write it; or profiles of Nsight Systems (nsys export --type sqlite), of one "
            "rank or of all that a launcher started.",
        ),
    ],
    as_json: AsJson = False,
    html: Annotated[Path | None, option("FILE", "Write a page with the timeline into this file.")] = None,
    merge: Annotated[
        Path | None, option("FILE", "Write all ranks' Chrome traces into one for Perfetto (.json or .json.gz).")
    ] = None,
    subtract: Annotated[
        bool,
        option(
            None,
            "Count a collective from when its last rank joined; needs the traces of all.",
            "--subtract-peer-wait",
        ),
    ] = False,
    copies: Annotated[
        bool, option(None, "Whether copies and fills of GPU memory hide communication.", "--copies/--no-copies")
    ] = True,
    largest: Annotated[float, option("GB", "Most that a trace may have, unpacked.")] = 1.0,
    everything: Annotated[bool, option(None, "Show every rank and every collective.", "--all")] = False,
) -> None:
    """Show how much communication is exposed: in flight while the rank computes nothing."""
    from farskip_compile.cli.progress import working
    from farskip_compile.measure.profiling import (
        NoCollectivesError,
        Trace,
        TraceError,
        merge_traces,
        overlap,
        read_traces,
    )
    from farskip_compile.measure.profiling.page import overlap_page
    from farskip_compile.measure.profiling.text import report_text

    if not 0 < largest <= MOST_GB:
        raise typer.BadParameter(f"a number of GB, above 0 and up to {MOST_GB}", param_hint="--largest")
    most = int(largest * 10**9)
    with shown_errors(status=2):
        for path in (html, merge):
            if path is not None and any(path.resolve() == trace.resolve() for trace in traces):
                raise TraceError(f"{path} is one of the traces to read", way_out="give another name for the output")
        try:
            with working(f"reading {traces[0].name}") as work:
                found: list[Trace] = []
                for number, path in enumerate(traces, 1):
                    if number > 1:
                        work(f"reading {number} of {len(traces)}: {path.name}")
                    found += read_traces(path, largest=most)
                report = overlap(found, subtract_peer_wait=subtract, count_copies=copies)
        except NoCollectivesError as error:
            if as_json:
                reason = {"error": type(error).__name__, "reason": error.reason, "way_out": error.way_out}
                show_document({"refusal": reason})
                raise typer.Exit(1) from None
            with shown_errors(status=1):
                raise
        if merge is not None:
            merge_traces(traces, merge, largest=most)
    if html is not None:
        try:
            html.write_text(overlap_page(report), encoding="utf-8")
        except OSError as error:
            raise cannot_write(html, error, "--html") from None
    show(
        as_json,
        lambda: {"refusal": None, **report.to_json()},
        lambda console: report_text(report, console, everything=everything),
        [("page", html), ("merged trace, for ui.perfetto.dev", merge)],
    )
