"""What came out of a row, and the file of all rows.

Contract: plain data, to JSON and back. A kept result is used only for the same row at the same scale.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common import decode, load_records, write_records

from distill_bench.rows import MEMORY_INCREASE, PROFILE, RANKS, TOKENS, Row, Scale

SCHEMA = 1
FILE = "result.json"


@dataclass(frozen=True)
class Judged:
    """On one source of text; nats per token."""

    loss: float
    """Cross-entropy with the text."""
    kl: float
    """KL(teacher || row)."""
    top1: float
    """Fraction of the positions at which both find the same token most probable."""


@dataclass(frozen=True)
class Result:
    """Of one row."""

    row: Row
    digest: str
    judged: dict[str, Judged]
    """By source."""
    fullest: float
    """Tokens of the fullest expert over the mean, mean over MoE layers."""
    moved: float
    """Fraction of the routed tokens that went to another expert than the teacher's: a lower bound, from the loads."""
    rewired: int
    """Sub-blocks that read less than in the original."""
    steps: int
    best_step: int
    tokens: int
    """Targets that the row learned from."""
    seconds: float
    """For everything; two rows run at a time."""
    parameters: int
    history: list[tuple[int, float, float | None]] = field(default_factory=list)
    """Step, loss and KL on the text by which the best weights are chosen."""
    samples: list[tuple[str, str]] = field(default_factory=list)
    """Prompt and continuation."""


@dataclass(frozen=True)
class FrontPoint:
    """One set of sub-blocks."""

    rows: tuple[str, ...]
    damage: float
    """Sum of what each does alone: KL, nats per token."""
    measured: float
    """KL with all of them rewired together."""
    hidden: float
    """Fraction of the communication, by the cost model."""
    freed: float
    """Fraction of what `full` frees."""


@dataclass(frozen=True)
class FrontResult:
    """Of the row `front`."""

    row: Row
    digest: str
    points: list[FrontPoint]
    chosen: int
    """Which of them the plan is."""
    whole: FrontPoint
    """All sub-blocks."""
    damages: dict[str, float]
    """KL with one sub-block rewired, by its name."""
    connectivity: dict[str, list[str]]
    """The plan, as the backend takes it."""
    estimates: int
    seconds: float

    @property
    def plan(self) -> FrontPoint:
        """The chosen one."""
        return self.points[self.chosen]


@dataclass(frozen=True)
class Results:
    """All rows of an experiment, and what holds for all of them."""

    facts: dict[str, Any]
    rows: list[Result]
    fronts: list[FrontResult]

    def models(self) -> list[str]:
        """Their names."""
        return list(dict.fromkeys(one.row.model for one in self.rows))

    def of(self, model: str) -> dict[str, list[Result]]:
        """By label, one for each seed."""
        found: dict[str, list[Result]] = {}
        for one in self.rows:
            if one.row.model == model:
                found.setdefault(one.row.label, []).append(one)
        return found

    def front(self, model: str) -> FrontResult | None:
        """Of the model."""
        return next((one for one in self.fronts if one.row.model == model), None)

    def sort(self, rows: Sequence[Row]) -> None:
        """As in `rows`."""
        place = [row.key for row in rows]
        for found in (self.rows, self.fronts):
            found.sort(key=lambda one: place.index(one.row.key))

    def write(self, path: Path) -> None:
        """Replace the file."""
        write_records(path, SCHEMA, self.facts, rows=map(asdict, self.rows), fronts=map(asdict, self.fronts))

    @staticmethod
    def load(path: Path) -> Results:
        """What `write` wrote.

        Raises:
            RecordsError: there is no such file, or it holds something else.
        """
        return load_records(path, SCHEMA, lambda data: decode(Results, data))


def mean(rows: Sequence[Result], of: Callable[[Result], float]) -> float:
    """Over seeds."""
    return statistics.fmean(of(one) for one in rows)


def spread(rows: Sequence[Result], of: Callable[[Result], float]) -> float:
    """Largest minus smallest over seeds."""
    values = [of(one) for one in rows]
    return max(values) - min(values)


def digest_of(row: Row, scale: Scale) -> str:
    """Equal for a kept result and the row that is asked for."""
    decides: list[Any] = [asdict(row), asdict(scale)]
    if row.kind == "front" or row.connectivity == "plan":
        decides += [RANKS, TOKENS, PROFILE, MEMORY_INCREASE]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def kept(folder: Path, row: Row, scale: Scale) -> Result | FrontResult | None:
    """The result in the row's folder, if it is of this row at this scale."""
    path = folder / row.key / FILE
    if not path.exists():
        return None
    data = json.loads(path.read_text())
    if data["digest"] != digest_of(row, scale):
        return None
    return decode(FrontResult if row.kind == "front" else Result, data)
