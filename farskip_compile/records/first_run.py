# SPDX-License-Identifier: Apache-2.0
"""Around a compiled graph: notice whose parameters it runs with, and what its schedule says, at its first run.

In:    what the inner backend has compiled, and the example inputs of its graph.
Out:   a function that does the same. The first time that it is called with the parameters of a model, these are noted
       (`ran`), the schedules that the graph announces meanwhile are taken down, and the user is told (`line`,
       `process_file`).
Never: changes what is computed, or looks at a value. A run with known parameters costs a count and three identities.

Algorithm. To compare all parameters would cost as much as Dynamo's guards do, so known ones are recognised by three of
them: the first, the one in the middle and the last. In runs 1, 2, 4, 8 and so on all are noted, so that one that was
replaced by itself is not overlooked for good. The backward graph announces its schedule when autograd comes to it: the
node that runs it gets a hook, once.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx, nn

from farskip_compile._compat import graph_break_reason
from farskip_compile._compat.distributed import world_size
from farskip_compile._compat.modules import parameter_name
from farskip_compile._compat.runs import before_first_backward, class_name, traced
from farskip_compile.records.compile import CompileReport
from farskip_compile.records.line import say
from farskip_compile.records.process_file import errors_noted, note_graph
from farskip_compile.records.ran import Graph, note, ticks
from farskip_compile.records.schedule import ScheduleReport, hear

MOST = 4096
"""Models that are remembered for one graph; a library that makes new parameters for each step fills this in vain."""


def watched(
    compiled: Callable[..., Any], module: fx.GraphModule, inputs: Sequence[Any], report: CompileReport, seconds: float
) -> Callable[..., Any]:
    """`compiled`, watched.

    Args:
        compiled: what runs in place of the graph.
        module: the graph, as Dynamo has handed it over, and rewired.
        inputs: its example inputs.
        report: what was done to it.
        seconds: that the inner backend has taken.
    """
    owner = traced()
    name = class_name(owner) if owner is not None else ""
    seconds += sum(report.seconds.values())
    used = set(report.sub_block_parameters)
    inside = enumerate(map(parameter_name, module.graph.find_nodes(op="placeholder")))
    stack = frozenset(number for number, known_as in inside if known_as in used)
    graph = Graph(report, name, graph_break_reason(module), seconds, time.time(), world_size(), stack)
    graph.owner = weakref.ref(owner) if owner is not None else None
    note_graph(graph)
    places = [place for place, value in enumerate(inputs) if isinstance(value, nn.Parameter)]
    first, middle, last = (places[0], places[len(places) // 2], places[-1]) if places else (0, 0, 0)
    known: set[tuple[int, int, int]] = set()

    def run(*args: Any) -> Any:
        graph.runs += 1
        graph.last = next(ticks)
        here = (id(args[first]), id(args[middle]), id(args[last])) if places else (0, 0, 0)
        if here not in known:
            return first_time(here, args)
        outputs = compiled(*args)
        if not graph.runs & (graph.runs - 1):
            note(graph, parameters_of(args))
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
        note(graph, parameters_of(args))
        await_backward(outputs)
        note_graph(graph)
        if not graph.is_part:
            say(graph.report, graph.model, [[graph]], parameters_of(args).values())
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
