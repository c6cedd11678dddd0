"""What came out of a row, and the file of all rows.

Contract: plain data, to JSON and back. A file is never seen half written. A result is taken from disk only if it is of
the same row at the same scale.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distill_bench.rows import Row
from distill_bench.scale import MEMORY_INCREASE, PROFILE, RANKS, TOKENS, Scale

SCHEMA = 1
FILE = "result.json"


class ResultError(Exception):
    """A file that can't be read."""


@dataclass(frozen=True)
class Judged:
    """On one source of text; nats per token."""

    loss: float
    """Cross-entropy with the text."""
    kl: float
    """KL(teacher || row)."""
    top1: float
    """Part of the tokens at which both find the same one most probable."""


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
    """Part of the routed tokens that are with another expert than the teacher's, as far as the loads tell."""
    rewired: int
    """Sub-blocks that read less than in the original."""
    steps: int
    best_step: int
    tokens: int
    """Targets that were learnt from."""
    seconds: float
    """With everything; two rows run at a time."""
    parameters: int
    history: list[tuple[int, float, float | None]] = field(default_factory=list)
    """Step, loss and KL on the text by which the best weights are chosen."""
    samples: list[tuple[str, str]] = field(default_factory=list)
    """Prompt, and how the model goes on."""

    def to_json(self) -> dict[str, Any]:
        """For `json.dumps`."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Result:
        """What `to_json` gave."""
        return Result(
            **{
                **data,
                "row": _row(data["row"]),
                "judged": {name: Judged(**one) for name, one in data["judged"].items()},
                "history": [(step, loss, kl) for step, loss, kl in data["history"]],
                "samples": [(prompt, text) for prompt, text in data["samples"]],
            }
        )


@dataclass(frozen=True)
class FrontPoint:
    """One set of sub-blocks."""

    rows: tuple[str, ...]
    damage: float
    """Sum of what each does alone: KL, nats per token."""
    measured: float
    """KL with all of them rewired."""
    hidden: float
    """Part of the communication, by the cost model."""
    freed: float
    """Part of what `full` frees."""


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

    def to_json(self) -> dict[str, Any]:
        """For `json.dumps`."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> FrontResult:
        """What `to_json` gave."""
        points = [_point(one) for one in data["points"]]
        return FrontResult(
            **{**data, "row": _row(data["row"]), "points": points, "whole": _point(data["whole"])},
        )


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
        place = {row.key: number for number, row in enumerate(rows)}
        self.rows.sort(key=lambda one: place[one.row.key])
        self.fronts.sort(key=lambda one: place[one.row.key])

    def write(self, path: Path) -> None:
        """Replace the file."""
        rows, fronts = (",\n".join(json.dumps(one.to_json()) for one in found) for found in (self.rows, self.fronts))
        facts = json.dumps(self.facts, indent=1)
        replace(path, f'{{"schema": {SCHEMA},\n"facts": {facts},\n"rows": [\n{rows}\n],\n"fronts": [\n{fronts}\n]}}\n')

    @staticmethod
    def load(path: Path) -> Results:
        """What `write` wrote.

        Raises:
            ResultError: no such file, or another one.
        """
        try:
            data = json.loads(path.read_text())
            if data["schema"] != SCHEMA:
                raise ResultError(f"{path} has schema {data['schema']}, not {SCHEMA}: run the experiment again")
            return Results(
                data["facts"],
                [Result.from_json(one) for one in data["rows"]],
                [FrontResult.from_json(one) for one in data["fronts"]],
            )
        except FileNotFoundError:
            raise ResultError(f"there is no {path}: run the experiment first") from None
        except (KeyError, TypeError, ValueError) as error:
            raise ResultError(f"{path} is no result of this benchmark: {type(error).__name__} {error}") from None


def mean(rows: Sequence[Result], of: Callable[[Result], float]) -> float:
    """Over seeds."""
    return statistics.fmean(of(one) for one in rows)


def spread(rows: Sequence[Result], of: Callable[[Result], float]) -> float:
    """Largest minus smallest over seeds."""
    values = [of(one) for one in rows]
    return max(values) - min(values)


def digest_of(row: Row, scale: Scale) -> str:
    """What a kept result must have in common with the row that is asked for."""
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
    return FrontResult.from_json(data) if row.kind == "front" else Result.from_json(data)


def replace(path: Path, text: str) -> None:
    """Write a file that is never seen half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.replace(path)


def _row(data: dict[str, Any]) -> Row:
    layers = data["layers"]
    return Row(**{**data, "layers": tuple(layers) if layers else None, "needs": tuple(data["needs"])})


def _point(data: dict[str, Any]) -> FrontPoint:
    return FrontPoint(**{**data, "rows": tuple(data["rows"])})
