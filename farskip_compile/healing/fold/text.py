# SPDX-License-Identifier: Apache-2.0
"""A fold as a table for the terminal.

Contract: from a `Folded` alone; a line for each value that is read and each term that is added, and below it what was
    left
alone.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from farskip_compile.healing.fold.record import Folded
from farskip_compile.text_utils import printable


def fold_table(found: Folded) -> RenderableType:
    """What `farskip heal --recipe fold` prints."""
    table = Table(box=None, pad_edge=False)
    for name in ("row", "changed"):
        table.add_column(name)
    for name in ("weights", "explained", "held-out KL", ""):
        table.add_column(name, justify="right")
    for read in found.reads:
        table.add_row(
            read.row,
            "what it adds" if read.outputs else "what it reads",
            str(len(read.parameters)),
            f"{max(read.explained, 0.0):.0%}",
            f"{read.kl:.4f}",
            "" if read.accepted else "not taken",
        )
    return Group(table, *map(Text, _lines(found)))


def _lines(found: Folded) -> Iterator[str]:
    yield ""
    yield f"held-out KL to the original: {found.kl_before:.4f} rewired, {found.kl_after:.4f} folded"
    yield f"{found.repaired:.0%} of the damage repaired with {found.tokens:,} tokens, no step of training"
    for one in found.left_alone:
        yield f"left alone: {one.row}{' ' + printable(one.parameter) if one.parameter else ''}: {printable(one.reason)}"
