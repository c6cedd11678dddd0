# SPDX-License-Identifier: Apache-2.0
"""What one run has found: plain data, as JSON and back, and the times in it.

In:    rows that the parts measured; or a file.
Out:   a file that is complete; or `Results`, every field there and of its type.
Never: a figure without the run that it is from; a figure of a dry run that does not say so.

Seconds and bytes everywhere.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common import replace

from farskip_compile.base.json_files import JsonReader

SCHEMA = 1
DONE, FAILED, LATE, LEFT = "done", "failed", "stopped at its limit", "not begun"


@dataclass(frozen=True)
class Times:
    """Repetitions of one step."""

    median: float
    least: float
    most: float
    runs: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Times:
        """At least one."""
        return cls(statistics.median(seconds), min(seconds), max(seconds), len(seconds))


@dataclass(frozen=True)
class Machine:
    """What runs here, and how fast it is."""

    device: str
    versions: Mapping[str, str]
    rates: Mapping[str, float]
    """FLOP/s of a product by type; bytes/s of a copy, read and written."""
    spins: Mapping[str, float]
    """Seconds that a collective of the link was to take, as text, and how long it took, launch included."""


@dataclass(frozen=True)
class Cost:
    """Our backend where there is nothing to hide, against plain Inductor."""

    group: str
    """`no group`, or `world of one`."""
    phase: str
    plain: Times
    ours: Times
    ratio: float
    """Ours over plain: the median over repetitions, in which both ran one after the other."""
    plain_peak: int | None
    ours_peak: int | None


@dataclass(frozen=True)
class Correct:
    """What is compiled, against the form written by hand in eager mode: the largest error over the largest number."""

    mode: str
    dtype: str
    output: float
    gradient: float
    """Of the parameter that is furthest off."""
    worst: str
    missing: tuple[str, ...]
    """Parameters that got no gradient, and should have."""
    plain_output: float | None = None
    plain_gradient: float | None = None
    """How far plain Inductor is off; measured only where ours is beyond the limit."""


@dataclass(frozen=True)
class Order:
    """One generated program, and what our scheduler has reported of it."""

    variant: str
    phase: str
    graph: str
    """`forward`, `backward` or `inference`."""
    calls: str
    """A letter for each: L launch, W wait, m product, A attention, k kernel, o other operator."""
    hidden: tuple[int, ...]
    """For each launch, the products and attentions until its wait."""
    as_decided: bool | None
    """Whether launches come in the order that was reported, and the same flights have compute under them; None: not
    ours."""
    differs: str = ""
    """How not."""


@dataclass(frozen=True)
class Link:
    """One variant over the emulated link, at one ratio."""

    phase: str
    variant: str
    ratio: float
    """Of all communication to plain Inductor's step without it."""
    blocks: int
    """That a collective keeps busy."""
    bandwidth: float
    step: Times
    free: Times
    """The same code over a link that takes no time."""
    wire: float
    """All collectives of the step, one after another."""
    launches: int

    @property
    def exposed(self) -> float:
        """Seconds that the link adds to the step."""
        return max(0.0, self.step.median - self.free.median)

    @property
    def hidden(self) -> float:
        """Fraction of the communication."""
        return 1 - self.exposed / self.wire

    @property
    def bound(self) -> float:
        """No order of this code is faster."""
        return max(self.free.median, self.wire)


@dataclass(frozen=True)
class Graphs:
    """One variant with CUDA graphs."""

    variant: str
    without: Times
    graphs: Times
    off: float
    """Largest difference from the same variant without them, over the largest number."""
    same: bool
    """Whether replays give the same bits."""
    skipped: int
    """Graphs for which Inductor has said that it left CUDA graphs out."""


@dataclass(frozen=True)
class Calibrated:
    """What `farskip calibrate` has found."""

    command: str
    seconds: float
    points: int
    figures: Mapping[str, float]
    """Of the profile, by path."""
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Failure:
    """Of a part that went on: what could not be measured, and why."""

    what: str
    why: str


Row = Machine | Cost | Correct | Order | Link | Graphs | Calibrated | Failure
ROWS: dict[str, type[Any]] = {one.__name__: one for one in Row.__args__}


@dataclass(frozen=True)
class Part:
    """A part of the run."""

    name: str
    status: str
    seconds: float
    rows: tuple[Row, ...] = ()
    why: str = ""
    """Of a part that was not done: the end of what it wrote."""


@dataclass
class Results:
    """See the module's contract."""

    facts: dict[str, str]
    dry: bool
    parts: list[Part] = field(default_factory=list)

    def rows(self, kind: type[Any]) -> list[Any]:
        """All of one kind."""
        return [row for part in self.parts for row in part.rows if isinstance(row, kind)]

    def save(self, path: Path) -> None:
        """As a whole, or not at all."""
        parts = [{**asdict(part), "rows": encoded(part.rows)} for part in self.parts]
        data = {"schema": SCHEMA, "dry_run": self.dry, "facts": self.facts, "parts": parts}
        replace(path, json.dumps(data, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """The results in a file.

        Raises:
            FarSkipError: something is missing, unknown, or of the wrong type; it is named.
            OSError, ValueError: the file is missing, or is not JSON.
        """
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA or not isinstance(data["dry_run"], bool):
            raise ValueError(f"{path} is not a file of this version: measure again")
        parts = [Part(**{**part, "rows": decoded(part["rows"])}) for part in data["parts"]]
        return cls(data["facts"], data["dry_run"], parts)


def encoded(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Each row with its kind."""
    return [{"kind": type(row).__name__, **asdict(row)} for row in rows]


def decoded(rows: Iterable[dict[str, Any]]) -> tuple[Row, ...]:
    """The opposite.

    Raises:
        FarSkipError: as `Results.load`.
    """
    reader = JsonReader("the figures", accepts_null=True)
    found = []
    for place, row in enumerate(rows):
        known = dict(row)
        found.append(reader.decode(ROWS[known.pop("kind")], known, f"rows.{place}"))
    return tuple(found)
