# SPDX-License-Identifier: Apache-2.0
"""One process, by the file that it has written: which process wrote it, and the records of its compiles."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from farskip_compile.base.json_files import encode
from farskip_compile.records.living import Life
from farskip_compile.records.record import (
    Answer,
    CompileRecord,
    Failure,
    ModelRecord,
    ProcessRecord,
    models_of,
    standing_failures,
)


@dataclass(frozen=True)
class ProcessHead:
    """The first line of a file: which process wrote it."""

    kind: Literal["process"]
    host: str
    place: str
    pid: int
    parent: int
    started: str
    rank: int
    ranks: int
    job: str
    command: str

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"rank {self.rank} of {self.ranks}")
        if self.pid < 1:
            raise ValueError(f"process {self.pid}")


@dataclass(frozen=True)
class Process:
    """A process, and the records that it has written."""

    head: ProcessHead
    life: Life
    silent_seconds: float | None
    """Time since the last sign of life; None: not known."""
    records: tuple[ProcessRecord, ...]
    """Oldest first."""

    @property
    def is_alive(self) -> bool:
        """Return whether the process is known to run."""
        return self.life is Life.ALIVE

    @cached_property
    def failures(self) -> tuple[Failure, ...]:
        """Errors and limits after which nothing of the same function was compiled."""
        return standing_failures(self.records)

    @cached_property
    def models(self) -> tuple[ModelRecord, ...]:
        """The models in the order of their last compiles."""
        return models_of(self.records)

    @property
    def compiled(self) -> tuple[CompileRecord, ...]:
        """All graphs, also of losses and of layers."""
        return tuple(one for one in self.records if isinstance(one, CompileRecord))

    @property
    def answer(self) -> Answer:
        """Whether every model of the process runs every row that was asked for."""
        found = {model.answer for model in self.models}
        if self.failures or Answer.NOT_REWIRED in found:
            return Answer.NOT_REWIRED
        return Answer.REWIRED if found == {Answer.REWIRED} else Answer.UNKNOWN

    @cached_property
    def wirings(self) -> list[tuple[Any, ...]]:
        """The facts that all ranks must have in common, in an order of their own."""
        return sorted((model.shown.wiring for model in self.models), key=str)

    @property
    def alike(self) -> tuple[Any, ...]:
        """A key that is equal for processes that are shown together."""
        shown = [model.shown for model in self.models]
        facts = [(*one.wiring, one.ran, one.first_run_seconds is None, one.manifest) for one in shown]
        return (self.head.job, self.head.ranks, self.life, self.answer, tuple(facts), self.failures)

    def to_json(self) -> dict[str, Any]:
        """Return plain data for `json.dumps`."""
        models = [{"answer": str(one.answer), **encode(one.shown)} for one in self.models]
        return {
            **encode(self.head),
            "life": str(self.life),
            "silent_seconds": self.silent_seconds,
            "answer": str(self.answer),
            "models": models,
            "failures": encode(self.failures),
            "compiled": encode(self.compiled),
        }
