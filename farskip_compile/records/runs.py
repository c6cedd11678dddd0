# SPDX-License-Identifier: Apache-2.0
"""Compiled graphs, and what is noted when they run: whose parameters they are given, and what their schedules say.

In:    what the inner backend has compiled, and the example inputs of its graph.
Out:   `watched`: a function that does the same. The first time that it is called with the parameters of a model, these
       are noted in the registry, with the schedules that the graph announces meanwhile, and the user is told (`line`,
       `process_file`). `expected`: how much communication these schedules expect to hide.
Never: changes what is computed, or looks at a value. Goes by what was compiled: models of one class share what Dynamo
       has compiled for the first of them, and only the call tells them apart. A run with known parameters costs a count
       and three identities.

Algorithm. To compare all parameters would cost as much as Dynamo's guards do, so known ones are recognised by three of
them: the first, the one in the middle and the last. In runs 1, 2, 4, 8 and so on all are noted, so that one that was
replaced by itself is not overlooked for good. The backward graph announces its schedule when autograd comes to it: the
node that runs it gets a hook, once.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.utils.weak import WeakIdKeyDictionary

from farskip_compile._compat import graph_break_reason
from farskip_compile._compat.distributed import world_size
from farskip_compile._compat.modules import parameter_name
from farskip_compile._compat.runs import before_first_backward, class_name, traced
from farskip_compile.records.compile import CompileReport
from farskip_compile.records.line import say
from farskip_compile.records.process_file import errors_noted, note_compile
from farskip_compile.records.record import LONGEST, CompileRecord, PhaseOverlap
from farskip_compile.records.registry import COMPILES
from farskip_compile.records.schedule import ScheduleReport, hear
from farskip_compile.text_utils import shortened

MOST = 4096
"""Models that are remembered for one graph; a library that makes new parameters for each step fills this in vain."""
PHASES = ("forward", "backward", "inference")


@dataclass(eq=False)
class Graph:
    """A graph that was compiled in this process; PyTorch keeps it, with what was compiled."""

    report: CompileReport
    model: str
    """Class of the module that was traced; empty if no module was."""
    ended_by: str | None
    """The graph break at the end of the graph."""
    compile_seconds: float
    """Time of rewiring and of the inner backend; Inductor mostly compiles the backward graph at its first run."""
    ranks: int
    """Size of the default process group."""
    stack: frozenset[int] = frozenset()
    """Places of the parameters of the sub-blocks, among the inputs of the graph."""
    given: WeakIdKeyDictionary = field(default_factory=WeakIdKeyDictionary)
    """Map each parameter that the graph has run with to its place."""
    schedules: dict[str, ScheduleReport] = field(default_factory=dict)
    """Schedules of the graphs that have run, by phase."""
    runs: int = 0
    last: int = 0
    """Number of the last run among all runs of the process."""
    owner: weakref.ref[nn.Module] | None = None
    """The module that was traced."""
    number: int = field(default_factory=COMPILES.numbers.__next__)
    """Number of the graph among the subjects of the registry."""
    first_seconds: float | None = None
    """Time of the first run, until it returned; a GPU may still compute."""

    def stack_is_in(self, parameters: Iterable[torch.Tensor]) -> bool:
        """Return whether all sub-blocks have run with some of `parameters`; not so if another model shares a few."""
        return self.stack <= {self.given[one] for one in parameters if one in self.given}

    @property
    def is_part(self) -> bool:
        """Return whether the graph is one of several that hand the stream on: a layer compiled by itself."""
        return self.report.departure is not None

    @property
    def may_run(self) -> bool:
        """Return whether the graph may run again: a model that it ran with, or was made of, is still there."""
        return self.owner is None or self.owner() is not None or len(self.given) > 0

    def record(self) -> CompileRecord:
        """Return the record of the compile, as it is known by now."""
        return CompileRecord.of(
            self.report,
            "part" if self.is_part else "graph",
            self.model,
            expected([[self]]),
            owner=COMPILES.owner_number(self.owner() if self.owner is not None else None),
            ran=self.runs > 0,
            compile_seconds=self.compile_seconds,
            first_run_seconds=self.first_seconds,
            ended_by=shortened(self.ended_by or "", LONGEST),
        )


def expected(places: Iterable[Sequence[Graph]]) -> tuple[PhaseOverlap, ...]:
    """Return the expected overlap of each phase that is scheduled.

    Args:
        places: for each place that is run once in a step (a model, or each of its layers) the graphs that may run
            there. The graph that has run last counts.
    """
    places = list(places)
    found = []
    for phase in PHASES:
        scheduled = [[graph for graph in graphs if phase in graph.schedules] for graphs in places]
        latest = [max(graphs, key=lambda graph: graph.last).schedules[phase] for graphs in scheduled if graphs]
        estimates = [(one.after, one.profile) for one in latest if one.after is not None]
        if estimates:
            communication = sum(after.communication_seconds for after, _ in estimates)
            exposed = sum(after.exposed_seconds for after, _ in estimates)
            profiles = ", ".join(dict.fromkeys(profile for _, profile in estimates))
            hidden = max(0.0, 1 - exposed / communication) if communication else None
            found.append(PhaseOverlap(phase, communication, exposed, profiles, hidden))
    return tuple(found)


def why_none(places: Iterable[Sequence[Graph]]) -> str:
    """Return why nothing is known about overlap, where `expected` returns nothing."""
    graph = next((graph for graphs in places for graph in graphs), None)
    if graph is None:
        return "no graph has run"
    config = graph.report.config
    if graph.ranks == 1:
        return "one process"
    if config.get("inner") != "inductor":
        return f"inner={config.get('inner')!r} schedules nothing"
    if not config.get("schedule"):
        return "schedule=False"
    return "no collective in its graphs"


def note_graph(graph: Graph) -> None:
    """Note that `graph` was compiled, or has run for the first time."""
    known = weakref.ref(graph)

    def record() -> CompileRecord | None:
        graph = known()
        return graph.record() if graph is not None and graph.may_run else None

    note_compile(graph.number, record, is_part=graph.is_part)


def watched(
    compiled: Callable[..., Any], module: fx.GraphModule, inputs: Sequence[Any], report: CompileReport, seconds: float
) -> Callable[..., Any]:
    """Return `compiled`, watched.

    Args:
        compiled: what runs in place of the graph.
        module: the graph, as Dynamo has handed it over, and rewired.
        inputs: example inputs of the graph.
        report: what was done to the graph.
        seconds: time that the inner backend has taken.
    """
    owner = traced()
    name = class_name(owner) if owner is not None else ""
    used = set(report.sub_block_parameters)
    names = map(parameter_name, module.graph.find_nodes(op="placeholder"))
    stack = frozenset(place for place, name in enumerate(names) if name in used)
    seconds += sum(report.seconds.values())
    graph = Graph(report, name, graph_break_reason(module), seconds, world_size(), stack)
    graph.owner = weakref.ref(owner) if owner is not None else None
    note_graph(graph)
    places = [place for place, value in enumerate(inputs) if isinstance(value, nn.Parameter)]
    first, middle, last = (places[0], places[len(places) // 2], places[-1]) if places else (0, 0, 0)
    known: set[tuple[int, int, int]] = set()

    def run(*args: Any) -> Any:
        graph.runs += 1
        graph.last = next(COMPILES.ticks)
        here = (id(args[first]), id(args[middle]), id(args[last])) if places else (0, 0, 0)
        if here not in known:
            return first_time(here, args)
        outputs = compiled(*args)
        if not graph.runs & (graph.runs - 1):
            COMPILES.note_run(graph, parameters_of(args))
            await_backward(outputs)
        return outputs

    def first_time(here: tuple[int, int, int], args: tuple[Any, ...]) -> Any:
        begin = time.perf_counter()
        with errors_noted(), hear(taken):
            outputs = compiled(*args)
        if graph.first_seconds is None:
            graph.first_seconds = time.perf_counter() - begin
        if len(known) >= MOST:
            known.clear()
        known.add(here)
        parameters = parameters_of(args)
        COMPILES.note_run(graph, parameters)
        await_backward(outputs)
        note_graph(graph)
        if not graph.is_part:
            tell([[graph]], graph.report, graph.record(), parameters.values())
        return outputs

    def parameters_of(args: tuple[Any, ...]) -> dict[int, nn.Parameter]:
        return {place: args[place] for place in places}

    def await_backward(outputs: Any) -> None:
        if "backward" not in graph.schedules:
            listening = hear(taken)

            def end() -> None:
                listening.__exit__(None, None, None)

            before_first_backward(outputs, listening.__enter__, end)

    def taken(schedule: ScheduleReport) -> None:
        graph.schedules[schedule.phase] = schedule
        if schedule.phase == "backward":
            note_graph(graph)

    return run


def tell(
    places: Sequence[Sequence[Graph]], report: CompileReport, record: CompileRecord, parameters: Iterable[torch.Tensor]
) -> None:
    """Log the line of a model at its first step."""
    say(report, record, "" if record.overlap else why_none(places), next(iter(parameters), None))
