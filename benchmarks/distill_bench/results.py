"""What came out of a row, the file of all rows, and whether they show what the experiment was to show.

Contract: plain data, to JSON and back, and arithmetic. A kept result is used only for the same row at the same scale. A
target whose rows are missing is missed. Losses of several seeds count as their mean.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common import Target, decode, load_records, write_records

from distill_bench.architectures import WITH_SHARED
from distill_bench.rows import FREED, MEMORY_INCREASE, PROFILE, RANKS, TOKENS, Row, Scale

SCHEMA = 1
FILE = "result.json"
HEALED, HEALED_WITHOUT_SHARED, SCRATCH, MOST_TOKENS, DAMAGE = 0.010, 0.015, 0.010, 0.10, 0.5
"""Fractions of the teacher's held-out loss, of its tokens, and of the damage of rewiring everything."""


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

    def write(self, path: Path) -> None:
        """Replace the file."""
        write_records(path, SCHEMA, self.facts, rows=map(asdict, self.rows), fronts=map(asdict, self.fronts))

    @staticmethod
    def load(path: Path) -> Results:
        """What `write` wrote; raises as `load_records`."""
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


# Targets, and what the command prints in 80 columns


def judge_targets(results: Results) -> list[Target]:
    """The targets of the whole experiment, for all models."""
    return [target for model in results.models() for target in _of(results, model)]


def judge_healing(results: Results) -> list[Target]:
    """What must hold at any scale."""
    targets = []
    for model in results.models():
        rows = results.of(model)
        healed, unhealed, by_text = (
            mean(rows[label], lambda one: one.judged["held_out"].kl)
            for label in ("healed-full", "unhealed-full", "healed-by-text-full")
        )
        text = "healed by the teacher, full is nearer to it than unhealed or healed by the text"
        found = f"KL {healed:.4f}, {unhealed:.4f}, {by_text:.4f}"
        targets.append(Target(text, healed < min(unhealed, by_text), found, f"{model}:"))
    return targets


def above(rows: list[Result], teacher: list[Result], source: str = "held_out") -> float:
    """Relative increase of the loss over the teacher's."""
    return mean(rows, lambda one: one.judged[source].loss) / mean(teacher, lambda one: one.judged[source].loss) - 1


def _of(results: Results, model: str) -> list[Target]:
    rows, front = results.of(model), results.front(model)
    teacher = rows.get("teacher", [])
    healed, scratch = (rows.get(name, []) if teacher else [] for name in ("healed-full", "scratch"))
    limit = HEALED if model in WITH_SHARED else HEALED_WITHOUT_SHARED
    tokens = mean(healed, lambda one: one.tokens) / teacher[0].tokens if healed else None
    loss = "the teacher's held-out loss"

    def change(of: list[Result]) -> float | None:
        return above(of, teacher) if of else None

    found: list[tuple[str, bool, str]] = []
    for text, value, most, form in (
        (f"healed full within {limit:.1%} of {loss}", change(healed), limit, "+.2%"),
        (f"with at most {MOST_TOKENS:.0%} of the teacher's tokens", tokens, MOST_TOKENS, ".1%"),
        (f"FarSkip from scratch within {SCRATCH:.1%} of {loss}", change(scratch), SCRATCH, "+.2%"),
    ):
        found.append((text, value is not None and value <= most, "not run" if value is None else format(value, form)))
    if front is None:
        found.append(("the plan", False, "not run"))
    else:
        ratio = front.plan.measured / front.whole.measured
        text = f"the plan frees at least {FREED:.0%} of what full frees, at {DAMAGE:.0%} of its damage"
        met = front.plan.freed >= FREED and ratio <= DAMAGE
        found.append((text, met, f"{front.plan.freed:.0%} at {ratio:.0%}"))
    return [Target(*one, f"{model}:") for one in found]


def row_text(result: Result | FrontResult, teacher: Result | None) -> str:
    """One line when a row is done."""
    name = f"{result.row.model:12} {result.row.name:22}"
    if isinstance(result, FrontResult):
        return f"{name} plan: {len(result.plan.rows)} of {len(result.whole.rows)} sub-blocks  {result.seconds:.0f} s"
    own = result.judged["held_out"]
    over = f"{own.loss / teacher.judged['held_out'].loss - 1:+7.2%}" if teacher is not None else " " * 7
    return f"{name} loss {own.loss:.4f} {over}  KL {own.kl:.4f}  {result.seconds:4.0f} s"


def targets_text(targets: Sequence[Target]) -> str:
    return "\n".join(one.line() for one in targets)
