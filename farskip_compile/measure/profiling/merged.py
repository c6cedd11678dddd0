# SPDX-License-Identifier: Apache-2.0
"""The traces of several ranks in one file: what `merge_traces` says about them, and the way back.

In:    a document that `merge_traces` wrote and `chrome.load` gave.
Out:   a document for each rank, as its own trace would have been: its events, and what that said about the process.
Never: believes a file that others may have written.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from farskip_compile.base.json_files import shown
from farskip_compile.measure.profiling.chrome import Document, NotATraceError

RANKS, ABOUT = "farskipRanks", "farskipTraces"
"""Keys of the document: the ranks; and for each of them, as text, what its trace said about the process."""
SCHEDULES = "farskip_schedules"
"""Where `record` puts the schedules of the process into a trace."""
KEPT = ("distributedInfo", "host_name", SCHEDULES)
"""What is kept of what a trace says about its process."""
STRIDE = 1000
"""Processes that a rank may have: rank r owns the ids from r * STRIDE + 1."""
MOST_RANKS = 2**16
"""In one file."""

_WAY_OUT = "give the traces that it was made of, one file for each rank"


def is_merged(document: Document) -> bool:
    """Whether `document` is of `merge_traces`."""
    return RANKS in document


def about(document: Document) -> dict[str, Any]:
    """What the trace of one rank says about its process, for the merged one."""
    return {key: document[key] for key in KEPT if key in document}


def apart(document: Document, source: str) -> dict[int, Document]:
    """The document of each rank.

    Raises:
        NotATraceError: `merge_traces` does not write such ranks.
    """
    ranks, said = document[RANKS], document.get(ABOUT, {})
    fits = isinstance(ranks, list) and 0 < len(ranks) <= MOST_RANKS and isinstance(said, dict)
    if not (fits and all(type(rank) is int and rank >= 0 for rank in ranks) and len({*ranks}) == len(ranks)):
        raise NotATraceError(f"{source} is of ranks that no run has: {shown(ranks)}", way_out=_WAY_OUT)
    if not all(isinstance(said.get(str(rank), {}), dict) for rank in ranks):
        raise NotATraceError(f"{source} says nothing readable about its ranks", way_out=_WAY_OUT)
    events: defaultdict[int, list[Any]] = defaultdict(list)
    for event in document["traceEvents"]:
        pid = event.get("pid") if isinstance(event, dict) else None
        if type(pid) is int:
            events[pid // STRIDE].append(event)
    base = {"baseTimeNanoseconds": document.get("baseTimeNanoseconds")}
    return {rank: {**about(said.get(str(rank), {})), **base, "traceEvents": events[rank]} for rank in sorted(ranks)}
