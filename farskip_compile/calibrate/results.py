"""What calibration found: a row for each measured point, and the profile made of all of them.

Contract: plain data that travels from rank 0 to the others as JSON, and comes out equal on each.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from farskip_compile.costs import HardwareProfile


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
    """Their interquartile range, as a part of the median."""
    repetitions: int
    rate: float | None = None
    """FLOP/s or bytes/s; None where there is no work to divide by the time."""
    unit: str = ""
    """`FLOP/s` or `B/s`."""


@dataclass(frozen=True)
class Calibration:
    """All rows, and the profile."""

    profile: HardwareProfile
    rows: tuple[Row, ...]
    device: str
    ranks: int
    seconds: float
    """That it took, on rank 0."""
    notes: tuple[str, ...] = ()
    """What could not be measured, and what stands in the profile instead."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {
            "profile": self.profile.to_json(),
            "rows": [{**asdict(row), "size": list(row.size)} for row in self.rows],
            "device": self.device,
            "ranks": self.ranks,
            "seconds": self.seconds,
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Calibration:
        """The calibration that `to_json` was called on."""
        rows = tuple(Row(**{**row, "size": tuple(row["size"])}) for row in data["rows"])
        return cls(
            HardwareProfile.from_json(data["profile"], origin="the profile of rank 0"),
            rows,
            data["device"],
            data["ranks"],
            data["seconds"],
            tuple(data["notes"]),
        )
