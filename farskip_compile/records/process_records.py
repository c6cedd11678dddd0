# SPDX-License-Identifier: Apache-2.0
"""Records that a process wrote about itself for `farskip status`, and the verdicts that follow.

In:    the lines of a file, as plain data.
Out:   `Process`: its models, and for each whether it runs every row that was asked for.
Never: takes what it can't tell for a yes; asks a process anything.

Whether a model runs rewired is decided by its graphs with the options of the last one. It does not
1. if one of them was refused or left alone, or has fewer rows rewired than were asked for;
2. if Dynamo has stopped compiling something in it, or an error ended a compile of it, and nothing of it was compiled
   since;
and it is unknown if none of them has run yet. A process runs rewired if all of its models do, and there is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from farskip_compile.base.json_files import encode
from farskip_compile.records.living import Life
from farskip_compile.text_utils import amount

REWIRED = ("rewired", "already in the form asked for")
REFUSED = "refused, compiled unchanged"
SILENT = ("no residual stack", "not a whole residual stack, unchanged as asked")
"""Values of `Outcome`."""

ProcessVerdict = Literal["rewired", "NOT REWIRED", "unknown"]


@dataclass(frozen=True)
class ExpectedOverlap:
    """An `Overlap` on disk."""

    phase: str
    communication_seconds: float
    exposed_seconds: float
    profile: str
    hidden: float | None = None


@dataclass(frozen=True)
class CompiledGraph:
    """A graph, or a model whose layers are compiled one by one (`layers`), whose graphs are the `part`s."""

    kind: Literal["graph", "part", "layers"]
    model: str
    """Name of the class."""
    outcome: str
    rows_rewired: int
    rows: int
    left_out: tuple[str, ...]
    overlap: tuple[ExpectedOverlap, ...]
    reason: str
    compile_id: str
    connectivity: str = ""
    """Return the request in a form that can be compared."""
    owner: int | None = None
    """Number of the module in its process; None: not known."""
    rows_asked: int | None = None
    rows_missing: tuple[str, ...] = ()
    """Names of rows that do not read what was asked for; the first ones."""
    manifest: str | None = None
    ran: bool | None = None
    """None: its runs are not watched."""
    compile_seconds: float | None = None
    first_run_seconds: float | None = None
    ended_by: str = ""

    @property
    def counts(self) -> bool:
        """Return whether the record is of a model, not of a loss or a part of a model."""
        return self.kind != "part" and self.outcome not in SILENT

    @property
    def is_complete(self) -> bool:
        """Return whether every row that was asked for reads the terms that were asked for."""
        return self.outcome in REWIRED and self.rows_rewired == self.rows_asked

    @property
    def options(self) -> tuple[Any, ...]:
        """Return the name of the backend that compiled the model."""
        return (self.connectivity, self.manifest, self.kind)

    @property
    def wiring(self) -> tuple[Any, ...]:
        """Return the facts that all ranks must have in common."""
        return (self.model, self.outcome, self.connectivity, self.rows_rewired, self.rows_asked, self.left_out)


@dataclass(frozen=True)
class Failure:
    """An error that ended a compile; or (`stopped`) something that Dynamo compiles no further version of."""

    kind: Literal["error", "stopped"]
    error: str
    reason: str
    model: str = ""
    owner: int | None = None


@dataclass(frozen=True)
class RunningModel:
    """One model of a process."""

    name: str
    graphs: tuple[CompiledGraph, ...]
    """All that count, oldest first; at least one."""
    failures: tuple[Failure, ...]
    """Since then."""

    @property
    def last(self) -> CompiledGraph:
        """The graph that was compiled last."""
        return self.graphs[-1]

    @property
    def current(self) -> tuple[CompiledGraph, ...]:
        """Graphs with the options of the last one, and those that were refused."""
        return tuple(one for one in self.graphs if one.options == self.last.options or one.outcome == REFUSED)

    @property
    def verdict(self) -> ProcessVerdict:
        """Return whether the model runs every row that was asked for."""
        if self.failures or not all(one.is_complete for one in self.current):
            return "NOT REWIRED"
        return "unknown" if all(one.ran is False for one in self.current) else "rewired"

    @property
    def shown(self) -> CompiledGraph:
        """The graph that the verdict rests on: the last one that is not complete, or the last one."""
        return next((one for one in reversed(self.current) if not one.is_complete), self.last)

    def __str__(self) -> str:
        one = self.shown
        return f"{self.name} {one.outcome}, {one.rows_rewired} of {amount(one.rows, 'row')}"


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


ProcessLine = CompiledGraph | Failure


@dataclass(frozen=True)
class Process:
    """A process, and what it has written."""

    head: ProcessHead
    life: Life
    silent_seconds: float | None
    """Since its last sign of life; None: not known."""
    lines: tuple[ProcessLine, ...]
    """Oldest first."""

    @property
    def is_alive(self) -> bool:
        """Return whether the process is known to run."""
        return self.life is Life.ALIVE

    @cached_property
    def _failures(self) -> dict[Any, list[Failure]]:
        """Return the last compile of each model, by model."""
        found: dict[Any, list[Failure]] = {}
        for one in self.lines:
            if isinstance(one, Failure):
                found.setdefault(one.owner, []).append(one)
                continue
            if one.owner is not None:
                found.pop(one.owner, None)
            if one.counts:
                found.pop(None, None)  # it is not known whose they were
        return found

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Errors and limits after which nothing of the same module was compiled."""
        return tuple(one for every in self._failures.values() for one in every)

    @cached_property
    def models(self) -> tuple[RunningModel, ...]:
        """Return the models in the order of their last compiles."""
        graphs: dict[Any, list[CompiledGraph]] = {}
        for one in self.compiled:
            if one.counts:
                key = one.model if one.owner is None else one.owner
                graphs[key] = [*graphs.pop(key, ()), one]
        return tuple(
            RunningModel(every[-1].model, tuple(every), tuple(self._failures.get(every[-1].owner, ())))
            for every in graphs.values()
        )

    @property
    def compiled(self) -> tuple[CompiledGraph, ...]:
        """All graphs, also of losses and of layers."""
        return tuple(one for one in self.lines if isinstance(one, CompiledGraph))

    @property
    def verdict(self) -> ProcessVerdict:
        """Return whether every model of the process runs every row that was asked for."""
        found = {model.verdict for model in self.models}
        if self.failures or "NOT REWIRED" in found:
            return "NOT REWIRED"
        return "rewired" if found == {"rewired"} else "unknown"

    @cached_property
    def wirings(self) -> list[tuple[Any, ...]]:
        """Return the facts that all ranks must have in common, in an order of their own."""
        return sorted((model.shown.wiring for model in self.models), key=str)

    @property
    def alike(self) -> tuple[Any, ...]:
        """Equal for processes that are shown together."""
        ran = [(model.shown.ran, model.shown.first_run_seconds is None, model.shown.manifest) for model in self.models]
        return (tuple(model.shown.wiring for model in self.models), tuple(ran), self.failures)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        models = [{"verdict": one.verdict, **encode(one.shown)} for one in self.models]
        return {
            **encode(self.head),
            **{"life": str(self.life), "silent_seconds": self.silent_seconds, "verdict": self.verdict},
            **{"models": models, "failures": encode(self.failures), "compiled": encode(self.compiled)},
        }
