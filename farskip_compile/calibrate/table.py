"""The measured points as tables on a terminal.

Contract: gives a renderable for a `rich` console of any width from 80 columns on; understandable without colours. Of
grids with many points only a part is shown unless everything is asked for.
"""

from __future__ import annotations

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from farskip_compile.calibrate.memory import PAGES
from farskip_compile.calibrate.results import Calibration, Row
from farskip_compile.profiling.text import time_text

FEW = 8
"""Points of one section that are shown."""
NOISY = 0.25
"""A spread beyond this is marked."""


def calibration_text(found: Calibration, console: Console, *, everything: bool = False) -> RenderableType:
    """All of a calibration.

    Args:
        found: what to show.
        console: where.
        everything: every point of every grid.
    """
    best: dict[str, float] = {}
    for row in found.rows:
        best[row.unit] = max(best.get(row.unit, 0.0), row.rate or 0.0)
    ranks = f"{found.ranks} ranks at once" if found.ranks > 1 else "one rank"
    parts: list[RenderableType] = [Text(f"{found.device}, {ranks}, {found.seconds:.0f} s", style="bold"), Text()]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("what", no_wrap=True)
    for name in ("size", "time", "spread", "rate", "of best"):
        table.add_column(name, justify="right", no_wrap=True)
    for section in dict.fromkeys(row.section for row in found.rows):
        rows = [row for row in found.rows if row.section == section]
        shown = rows if everything or len(rows) <= FEW else _some(rows)
        for row in shown:
            part = 100 * row.rate / _peak(found.rows, row, best) if row.rate and row.section != PAGES else None
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
    parts += [table, *_summary(found)]
    for note in found.notes:
        parts.append(Text.assemble(("note: ", "bold yellow"), note))
    return Group(*parts)


def _peak(rows: tuple[Row, ...], row: Row, best: dict[str, float]) -> float:
    """The best rate of its kind: of products of one type, of memory, of one kind of collective."""
    if row.unit == "FLOP/s":
        name = row.section.rsplit(" ", 1)[-1]
        return max(other.rate or 0.0 for other in rows if other.unit == row.unit and other.section.endswith(name))
    wire = "ranks" in row.section
    same = [other for other in rows if other.unit == row.unit and ("ranks" in other.section) == wire]
    return max((other.rate or 0.0 for other in same if other.section != PAGES), default=best[row.unit]) or 1.0


def _some(rows: list[Row]) -> list[Row]:
    """Evenly spread over the section, with its first and last point."""
    places = sorted({round(index * (len(rows) - 1) / (FEW - 1)) for index in range(FEW)})
    return [rows[place] for place in places]


def _summary(found: Calibration) -> list[Text]:
    profile = found.profile
    lines = []
    for name, link in (("inside a node", profile.intra_node), ("between nodes", profile.inter_node)):
        if link.interference is not None:
            lines.append(f"{name}: compute takes {1 + link.interference:.2f} times as long beside a collective")
        if link.duplex is not None:
            lines.append(f"{name}: the two ways of an uneven all-to-all overlap by {100 * link.duplex:.0f} %")
    if profile.sync_seconds is not None:
        lines.append(f"reading a number on the host: {time_text(1e9 * profile.sync_seconds)}")
    return [Text(line) for line in lines]


def size_text(row: Row) -> str:
    """`1024x512x64`, or `4 MiB`."""
    if len(row.size) > 1:
        return "x".join(map(str, row.size))
    size = row.size[0]
    for unit, step in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= step:
            return f"{size / step:.3g} {unit}"
    return f"{size} B"


def rate_text(rate: float, unit: str) -> str:
    """A rate with three digits: `105 GFLOP/s`."""
    for prefix, step in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if rate >= step:
            return f"{rate / step:.3g} {prefix}{unit}"
    return f"{rate:.3g} {unit}"
