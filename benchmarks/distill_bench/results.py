# SPDX-License-Identifier: Apache-2.0
"""What came out of a row, and the file of all rows.

Contract: plain data, to JSON and back. A kept result is used only for the same row at the same scale.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common import decode, load_records, write_records

from distill_bench.rows import MEMORY_INCREASE, PROFILE, RANKS, RECIPES, TOKENS, Row, Scale

SCHEMA = 2
FILE = "result.json"
OF_OTHER_ROWS = ("seeds", "parts", "others", "short", "calibration", "new_tokens")
"""Fields of a scale that decide nothing about a teacher."""
OF_FOLDED = ("calibration_alone",)
"""Those that decide about a fold alone, and nothing else."""
Setting = tuple[str, str]
"""A model and a corpus."""


@dataclass(frozen=True)
class Judged:
    """On one source of text; nats per token."""

    loss: float
    """Cross-entropy with the text."""
    kl: float
    """KL(teacher || row)."""
    top1: float
    """Fraction of the positions at which both find the same token most probable."""
    bits: float
    """Bits per byte of text."""
    error: float
    """Standard error of the difference between this loss and the teacher's on the same text, over its batches."""


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
    """Of processor time, for everything."""
    parameters: int
    history: list[tuple[int, float, float | None]] = field(default_factory=list)
    """Step, loss and KL on the text by which the best weights are chosen."""
    samples: list[tuple[str, str]] = field(default_factory=list)
    """Prompt and continuation."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Of the distillation, or of the fold."""


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

    def settings(self) -> list[Setting]:
        """Models and corpora; the first corpus first."""
        found = dict.fromkeys((one.row.corpus, one.row.model) for one in self.rows)
        corpora = list(dict.fromkeys(corpus for corpus, _ in found))
        return [(model, corpus) for one in corpora for corpus, model in found if corpus == one]

    def of(self, setting: Setting) -> dict[str, list[Result]]:
        """By label, one for each teacher."""
        found: dict[str, list[Result]] = {}
        for one in self.rows:
            if (one.row.model, one.row.corpus) == setting:
                found.setdefault(one.row.label, []).append(one)
        return found

    def front(self, setting: Setting) -> FrontResult | None:
        """Of the model on the corpus."""
        return next((one for one in self.fronts if (one.row.model, one.row.corpus) == setting), None)

    def write(self, path: Path) -> None:
        """Replace the file."""
        write_records(path, SCHEMA, self.facts, rows=map(asdict, self.rows), fronts=map(asdict, self.fronts))

    @staticmethod
    def load(path: Path) -> Results:
        """What `write` wrote; raises as `load_records`."""
        return load_records(path, SCHEMA, lambda data: decode(Results, data))


def digest_of(row: Row, scale: Scale) -> str:
    """Equal for a kept result and the row that is asked for."""
    ignored = () if row.kind == "folded" else OF_FOLDED
    if row.kind == "teacher":  # is trained for an hour: what decides about other rows does not matter
        ignored += OF_OTHER_ROWS
    decides: list[Any] = [asdict(row), {name: value for name, value in asdict(scale).items() if name not in ignored}]
    if row.recipe:
        decides.append(asdict(RECIPES[row.recipe]))
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
