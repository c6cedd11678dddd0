# SPDX-License-Identifier: Apache-2.0
"""A calibration on a terminal.

Contract: returns a renderable for a `rich` console of any width from 80 columns on, understandable without colours. Of
grids with many points only some are shown by default.
"""

from __future__ import annotations

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from farskip_compile.measure.calibrate.findings import PAGES, Calibration, MeasuredPoint
from farskip_compile.measure.profiling.text import time_text

FEW = 8
"""Points of one section that are shown by default."""
NOISY = 0.25
"""The spread beyond which a spread is marked."""


def calibration_text(found: Calibration, console: Console, *, everything: bool = False) -> RenderableType:
    """Return a calibration as a renderable for a terminal.

    Args:
        found: the result of `measure`.
        console: where it will be printed; its width decides the layout.
        everything: show every point of every grid, not some of each.
    """
    ranks = f"{found.ranks} ranks at once" if found.ranks > 1 else "one rank"
    parts = [Text(f"{found.device}, {ranks}, {found.seconds:.0f} s", style="bold"), Text()]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("what", no_wrap=True)
    for name in ("size", "time", "spread", "rate", "of best"):
        table.add_column(name, justify="right", no_wrap=True)
    rated = [row for row in found.rows if row.section != PAGES]
    for section in dict.fromkeys(row.section for row in found.rows):
        rows = [row for row in found.rows if row.section == section]
        shown = rows if everything or len(rows) <= FEW else _some(rows)
        for row in shown:
            best = max((other.rate or 0.0 for other in rated if _group(other) == _group(row)), default=0.0)
            part = 100 * row.rate / best if row.rate and row.section != PAGES else None
            table.add_row(
                section if row is shown[0] else "",
                size_text(row),
                time_text(1e9 * row.seconds),
                Text(f"{100 * row.spread:.0f}%", style="yellow" if row.spread > NOISY else ""),
                rate_text(row.rate, row.unit) if row.rate else "",
                f"{part:.0f}%" if part is not None else "",
            )
        if len(shown) < len(rows):
            table.add_row("", f"{len(rows) - len(shown)} more", "", "", "", "", style="dim")
    notes = [Text.assemble(("note: ", "bold yellow"), note) for note in found.notes]
    return Group(*parts, table, *_summary(found), *notes)


def _group(row: MeasuredPoint) -> tuple[str, str | bool]:
    """Return the key of points with a common best: products of one type, memory-bound kernels, or collectives."""
    return row.unit, row.section.rsplit(" ", 1)[-1] if row.unit == "FLOP/s" else "ranks" in row.section


def _some(rows: list[MeasuredPoint]) -> list[MeasuredPoint]:
    """Return points that are evenly spread over the section, with its first and last."""
    places = sorted({round(index * (len(rows) - 1) / (FEW - 1)) for index in range(FEW)})
    return [rows[place] for place in places]


def _summary(found: Calibration) -> list[Text]:
    profile = found.profile
    lines = []
    for name, link in (("inside a node", profile.intra_node), ("between nodes", profile.inter_node)):
        if link.interference is not None:
            lines.append(f"{name}: compute takes {1 + link.interference:.2f} times as long during a collective")
        if link.duplex is not None:
            lines.append(f"{name}: the two directions of an uneven all-to-all overlap by {100 * link.duplex:.0f} %")
    if profile.sync_seconds is not None:
        lines.append(f"reading a number on the host: {time_text(1e9 * profile.sync_seconds)}")
    return [Text(line) for line in lines]


def size_text(row: MeasuredPoint) -> str:
    """Return `1024x512x64`, or `4 MiB`."""
    if len(row.size) > 1:
        return "x".join(map(str, row.size))
    size = row.size[0]
    for unit, step in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= step:
            return f"{size / step:.3g} {unit}"
    return f"{size} B"


def rate_text(rate: float, unit: str) -> str:
    """Return a rate with three digits: `105 GFLOP/s`."""
    for prefix, step in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if rate >= step:
            return f"{rate / step:.3g} {prefix}{unit}"
    return f"{rate:.3g} {unit}"
