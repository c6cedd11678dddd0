# SPDX-License-Identifier: Apache-2.0
"""The record of a compile, and the answer for a model that follows from such records.

In:    a report, what its schedules expect, and what is known of its runs.
Out:   `CompileRecord` and `Failure`, as plain data that a process may write into a file; `ModelRecord`, which answers.
Never: takes what can't be told for a yes.

The line at the first step, `status(model)` and `farskip status` all derive from these records. A model does not run
rewired
1. if one of its graphs with the options of the last one was refused or left alone, or has fewer rows rewired than were
   asked for;
2. if Dynamo has stopped compiling something in it, or an error ended a compile of it, and nothing of it was compiled
   since;
and that is unknown if none of its graphs has run yet.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from farskip_compile.records.compile import CompileReport, Outcome, frame_of
from farskip_compile.records.rows import in_words
from farskip_compile.text_utils import amount, shortened

LONGEST = 500
"""Most characters of a reason."""
MOST_ROWS = 8
"""Rows that are named because they do not read what was asked for."""


class Answer(StrEnum):
    """Whether a model runs rewired."""

    REWIRED = "REWIRED"
    NOT_REWIRED = "NOT REWIRED"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True)
class PhaseOverlap:
    """Estimates for one phase of one step of one rank."""

    phase: str
    """`forward`, `backward` or `inference`."""
    communication_seconds: float
    """Sum over the collectives of the phase."""
    exposed_seconds: float
    """Time in which compute stands still for a collective."""
    profile: str
    """Name of the hardware profile that the estimates come from."""
    hidden: float | None = None
    """Fraction of the communication that is hidden; None: there is no communication."""

    @property
    def share(self) -> str:
        """What is hidden, in words."""
        phase = shortened(self.phase, 20)
        if self.hidden is None:
            return f"no communication in the {phase} graph"
        return f"{min(max(self.hidden, 0.0), 1.0):.0%} of the {phase} communication".replace("%", " %")

    def __str__(self) -> str:
        return self.share if self.hidden is None else f"{self.share} ({self.profile})"


@dataclass(frozen=True)
class CompileRecord:
    """A graph; or a model whose layers are compiled one by one (`layers`), and whose graphs are each a `part`."""

    kind: Literal["graph", "part", "layers"]
    model: str
    """Name of the class."""
    outcome: Outcome
    rows_rewired: int
    """Rows that were to change, and read what was asked for."""
    rows: int
    """Rows of the graph."""
    left_out: tuple[str, ...]
    """What the rows leave out, in words."""
    overlap: tuple[PhaseOverlap, ...]
    reason: str
    """Why a graph was refused or left alone."""
    compile_id: str
    """Dynamo's id of the compile: `[frame/recompile]`."""
    connectivity: str = ""
    """The request, as a text that is equal for equal requests."""
    owner: int | None = None
    """Number of the module in its process; None: not known."""
    rows_asked: int | None = None
    """Rows that were to change; None: not known, since the graph was refused."""
    rows_missing: tuple[str, ...] = ()
    """Names of rows that do not read what was asked for; the first ones."""
    manifest: str | None = None
    """Hash of the manifest that the model was compiled by."""
    ran: bool | None = None
    """Whether the graph has run; None: its runs are not watched."""
    compile_seconds: float | None = None
    first_run_seconds: float | None = None
    ended_by: str = ""
    """The graph break at the end of the graph."""

    @classmethod
    def of(
        cls,
        report: CompileReport,
        kind: Literal["graph", "part", "layers"] = "graph",
        model: str = "",
        overlap: tuple[PhaseOverlap, ...] = (),
        **runs: Any,
    ) -> CompileRecord:
        """Return the record of a compile.

        Args:
            report: what became of the graph.
            kind: the field `kind`.
            model: the field `model`.
            overlap: the field `overlap`.
            runs: the fields from `owner` on that tell of runs.
        """
        rows, config = report.asked_rows, report.config
        missing = [name for name in rows.asked or () if name not in rows.rewired]
        return cls(
            kind,
            model,
            report.outcome,
            len(rows.rewired),
            rows.total,
            in_words(report.table),
            overlap,
            shortened(report.reason, LONGEST),
            report.compile_id,
            connectivity=_comparable(config.get("connectivity"), config.get("layers"), config.get("kinds") or None),
            rows_asked=len(rows.asked) if rows.asked is not None else None,
            rows_missing=tuple(missing[:MOST_ROWS]),
            manifest=config.get("manifest"),
            **runs,
        )

    @property
    def frame(self) -> str:
        """The number of the function that was compiled, in its process: `3` of `3/1`; empty: not known."""
        return frame_of(self.compile_id)

    @property
    def is_of_model(self) -> bool:
        """Return whether the record is of a model, not of a loss or a part of a model."""
        return self.kind != "part" and self.outcome.is_of_model

    @property
    def is_complete(self) -> bool:
        """Return whether every row that was asked for reads the terms that were asked for."""
        return self.outcome.has_form and self.rows_rewired == self.rows_asked

    @property
    def options(self) -> tuple[Any, ...]:
        """The options that tell one compile of a model from another one."""
        return (self.connectivity, self.manifest, self.kind)

    @property
    def wiring(self) -> tuple[Any, ...]:
        """The facts that all ranks must have in common."""
        return (self.model, self.outcome, self.connectivity, self.rows_rewired, self.rows_asked, self.left_out)

    @property
    def manifest_text(self) -> str:
        """Whether the model was compiled by a manifest, in words."""
        return f"manifest {self.manifest[:12]} checked" if self.manifest else "no manifest"


@dataclass(frozen=True)
class Failure:
    """An error that ended a compile; or (`stopped`) something that from then on runs as it is written."""

    kind: Literal["error", "stopped"]
    error: str
    """Name of the class of the error."""
    reason: str
    model: str = ""
    """Name of the class of the module that it happened to."""
    owner: int | None = None
    """Number of that module in its process; None: not known."""
    frame: str = ""
    """Number of the function that Dynamo compiles no further version of; as `CompileRecord.frame`."""


ProcessRecord = CompileRecord | Failure


def standing_failures(records: Iterable[ProcessRecord]) -> tuple[Failure, ...]:
    """Return the failures among `records`, oldest first, after which nothing of the same function was compiled.

    Where no graph of the function is known, nothing of the same module; where the module is not known, no model.
    """
    records = list(records)
    frames = {one.frame for one in records if isinstance(one, CompileRecord)} - {""}
    found: list[Failure] = []
    for one in records:
        if isinstance(one, Failure):
            found.append(one)
        else:
            found = [failure for failure in found if not _ends(one, failure, failure.frame in frames)]
    return tuple(found)


def _ends(record: CompileRecord, failure: Failure, has_graph: bool) -> bool:
    """Return whether the compile of `record` ends a failure before it."""
    if has_graph:
        return record.frame == failure.frame
    if failure.owner is None:
        return record.is_of_model
    return record.owner == failure.owner


@dataclass(frozen=True)
class ModelRecord:
    """The graphs of one model, and what failed since."""

    name: str
    graphs: tuple[CompileRecord, ...]
    """All that are of the model as a whole, oldest first; at least one."""
    failures: tuple[Failure, ...]
    """Failures that stand."""

    @property
    def last(self) -> CompileRecord:
        """The graph that was compiled last."""
        return self.graphs[-1]

    @property
    def current(self) -> tuple[CompileRecord, ...]:
        """Graphs with the options of the last one: a model that is compiled anew runs no earlier graph."""
        return tuple(one for one in self.graphs if one.options == self.last.options)

    @property
    def answer(self) -> Answer:
        """Whether the model runs every row that was asked for."""
        if self.failures or not all(one.is_complete for one in self.current):
            return Answer.NOT_REWIRED
        return Answer.UNKNOWN if all(one.ran is False for one in self.current) else Answer.REWIRED

    @property
    def shown(self) -> CompileRecord:
        """The graph that the answer rests on: the last one that is not complete, or the last one."""
        return next((one for one in reversed(self.current) if not one.is_complete), self.last)

    def __str__(self) -> str:
        one = self.shown
        return f"{self.name} {one.outcome}, {one.rows_rewired} of {amount(one.rows, 'row')}"


def models_of(records: Sequence[ProcessRecord]) -> tuple[ModelRecord, ...]:
    """Return the models among the records of a process, in the order of their last compiles."""
    graphs: dict[int | str, list[CompileRecord]] = {}
    for one in records:
        if isinstance(one, CompileRecord) and one.is_of_model:
            key = one.model if one.owner is None else one.owner
            graphs[key] = [*graphs.pop(key, ()), one]
    failures = standing_failures(records)
    return tuple(model_of(every, failures) for every in graphs.values())


def model_of(graphs: Sequence[CompileRecord], failures: Iterable[Failure]) -> ModelRecord:
    """Return the model of `graphs`, with those of the standing `failures` that are about it."""
    last = graphs[-1]
    frames = {one.frame for one in graphs} - {""}
    concern = (one for one in failures if one.owner == last.owner or one.frame in frames)
    return ModelRecord(last.model, tuple(graphs), tuple(concern))


def _comparable(*options: Any) -> str:
    """Return options as a text that is equal for equal ones, and short: a table may name hundreds of rows."""
    text = " ".join(json.dumps(one, sort_keys=True) for one in options if one is not None)
    return text if len(text) <= LONGEST else hashlib.sha256(text.encode()).hexdigest()
