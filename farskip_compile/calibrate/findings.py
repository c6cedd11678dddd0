"""What calibration found: a row for each measured point, the profile made from all of them, and both on a terminal.

Contract: plain data that travels from rank 0 to the others; for people, a renderable for a `rich` console of any width
from 80 columns on, understandable without colours. Of grids with many points only some are shown unless everything is
asked for.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from farskip_compile.calibrate.stopwatch import Times
from farskip_compile.costs import HardwareProfile
from farskip_compile.profiling.text import time_text

PAGES = "new pages"
FEW = 8
"""Points of one section that are shown."""
NOISY = 0.25
"""A spread beyond this is marked."""


@dataclass(frozen=True)
class Row:
    """One measured point."""

    section: str
    """What was measured: `matmul float32`, `memory`, `all_to_all, 2 ranks`, ..."""
    size: tuple[int, ...]
    """Its shape, or its bytes."""
    seconds: float
    """Median of the repetitions."""
    spread: float
    """Their interquartile range, as a fraction of the median."""
    repetitions: int
    rate: float | None = None
    """FLOP/s or bytes/s; None where there is no work to divide by the time."""
    unit: str = ""
    """`FLOP/s` or `B/s`."""

    @classmethod
    def of(cls, section: str, size: tuple[int, ...], times: Times, rate: float | None = None, unit: str = "") -> Row:
        """The row for repeated measurements."""
        return cls(section, size, times.median, times.spread, len(times.seconds), rate, unit)

    @classmethod
    def moving(cls, section: str, size: tuple[int, ...], times: Times, bytes: int) -> Row:
        """The same for a call that moves so many bytes."""
        return cls.of(section, size, times, bytes / times.median, "B/s")


@dataclass(frozen=True)
class Calibration:
    """All rows, and the profile."""

    profile: HardwareProfile
    rows: tuple[Row, ...]
    device: str
    ranks: int
    seconds: float
    """What it took, on rank 0."""
    notes: tuple[str, ...] = ()
    """What could not be measured, and what the profile holds instead."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {**asdict(self), "profile": self.profile.to_json()}


def calibration_text(found: Calibration, console: Console, *, everything: bool = False) -> RenderableType:
    """All of a calibration.

    Args:
        found: what to show.
        console: where.
        everything: every point of every grid.
    """
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
            part = 100 * row.rate / _peak(found.rows, row) if row.rate and row.section != PAGES else None
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


def _peak(rows: tuple[Row, ...], row: Row) -> float:
    """The best rate among products of its type, among kernels bound by memory, or among collectives."""
    return max(other.rate or 0.0 for other in rows if other.section != PAGES and _group(other) == _group(row))


def _group(row: Row) -> tuple[str, str | bool]:
    return row.unit, row.section.rsplit(" ", 1)[-1] if row.unit == "FLOP/s" else "ranks" in row.section


def _some(rows: list[Row]) -> list[Row]:
    """Points that are evenly spread over the section, with its first and last."""
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
