# SPDX-License-Identifier: Apache-2.0
"""What became of each fault, as text of 80 columns.

In:    rows: the fault, how it was made, how each rank ended, what the disk is like.
Out:   a paragraph for each.
"""

from __future__ import annotations

import pickle
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.faults.outcomes import Outcome

WIDTH = 80
LABEL = 10
PROPERTY = "fault"
LONGEST = 230

Row = dict[str, Any]


def row(fault: str, made: str, outcomes: Sequence[Outcome], disk: str) -> Row:
    """Plain data, so that it can travel with the report of a test."""
    ranks = []
    for outcome in outcomes:
        text = " ".join(outcome.text.split())
        text = text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
        ranks.append(f"{outcome.ended}, {outcome.seconds:.2f} s" + (f": {text}" if text else ""))
    return {"fault": fault, "made": made, "ranks": ranks, "disk": disk}


def lines_of(rows: Sequence[Row]) -> list[str]:
    """The rows, ready to print."""
    lines = []
    for one in rows:
        lines += ["", *_wrapped("FAULT", one["fault"]), *_wrapped("made by", one["made"])]
        for rank, text in enumerate(one["ranks"]):
            lines += _wrapped(f"rank {rank}" if len(one["ranks"]) > 1 else "process", text)
        lines += _wrapped("disk", one["disk"])
    return lines


def _wrapped(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=f"{label:{LABEL}}", subsequent_indent=" " * LABEL, break_on_hyphens=False
    )


def disk_state(folder: Path) -> str:
    """What is in Inductor's cache: artifacts that can be read, and what can't, or is half written."""
    artifacts = [path for kind in ("fxgraph", "aotautograd") for path in (folder / kind).rglob("*") if path.is_file()]
    bad = [path for path in folder.rglob("*") if path.suffix == ".tmp"]
    for path in artifacts:
        try:
            with path.open("rb") as file:
                pickle.load(file)
        except Exception:
            bad.append(path)
    if bad:
        return "damaged: " + ", ".join(str(path.relative_to(folder)) for path in bad)
    return f"{len(artifacts)} cached graphs, all readable" if artifacts else "nothing written"
