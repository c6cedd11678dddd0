# SPDX-License-Identifier: Apache-2.0
"""Compiled graphs that have run, and whose parameters each of them was given.

In:    a graph, when it is compiled; the parameters that it was called with, when it runs.
Out:   the graphs of a model: those that were given one of its parameters, oldest first, while PyTorch keeps them.
Never: goes by what was compiled: models of one class share what Dynamo has compiled for the first of them, and only the
       call tells them apart. Keeps a graph or a parameter alive.

Parameters are compared by identity. A graph that holds none, because a library gives plain tensors in their place,
belongs to nobody: `without_parameters` counts such graphs.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from farskip_compile.records.compile import CompileReport
from farskip_compile.records.schedule import ScheduleReport

ticks = itertools.count(1)
"""Runs of graphs in this process, in their order."""


@dataclass(eq=False)
class Graph:
    """A graph that was compiled in this process; PyTorch keeps it, with what was compiled."""

    report: CompileReport
    model: str
    """Class of the module that was traced; empty if no module was."""
    ended_by: str | None
    """The graph break at its end."""
    compile_seconds: float
    """Of rewiring and of the inner backend; with Inductor, the backward graph is mostly compiled at its first run."""
    compiled_at: float
    """As `time.time`."""
    ranks: int
    """Of the default process group."""
    stack: frozenset[int] = frozenset()
    """Places of the parameters of its sub-blocks, among its inputs."""
    given: WeakIdKeyDictionary = field(default_factory=WeakIdKeyDictionary)
    """Parameter that it has run with -> its place."""
    schedules: dict[str, ScheduleReport] = field(default_factory=dict)
    """By phase (`forward`, `backward`, `inference`): of what has run."""
    runs: int = 0
    last: int = 0
    """When it ran last, see `ticks`."""
    owner: weakref.ref[nn.Module] | None = None
    """The module that was traced."""
    number: int = field(default_factory=itertools.count(1).__next__)
    """Among those of this process."""
    first_seconds: float | None = None
    """Of its first run, until it returned; a GPU may still compute."""

    def stack_is_in(self, parameters: Iterable[torch.Tensor]) -> bool:
        """Whether all of its sub-blocks have run with some of `parameters`; not so if others share a few with it."""
        return self.stack <= {self.given[one] for one in parameters if one in self.given}

    @property
    def is_part(self) -> bool:
        """Whether it is one of several that hand the stream on: a layer compiled by itself."""
        return self.report.departure is not None


_graphs: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""Parameter -> weak references to the graphs that were given it."""
_orphans: list[weakref.ref[Graph]] = []
_lock = threading.Lock()


def note(graph: Graph, parameters: Mapping[int, torch.Tensor]) -> None:
    """`graph` has run with these parameters, by their place among its inputs."""
    reference = weakref.ref(graph)
    with _lock:
        for place, parameter in parameters.items():
            graph.given[parameter] = place
            known = [one for one in _graphs.get(parameter, ()) if one() is not None]
            if reference not in known:
                _graphs[parameter] = [*known, reference]
        if not parameters and reference not in _orphans:
            _orphans[:] = [one for one in _orphans if one() is not None] + [reference]


def graphs_of(parameters: Iterable[torch.Tensor]) -> tuple[Graph, ...]:
    """The graphs that have run with one of `parameters`, oldest first, each once."""
    found: dict[int, Graph] = {}
    with _lock:
        for parameter in parameters:
            for reference in _graphs.get(parameter, ()):
                if (graph := reference()) is not None:
                    found.setdefault(id(graph), graph)
    return tuple(sorted(found.values(), key=lambda one: one.last))


def without_parameters() -> int:
    """How many graphs with a residual stack have run with no parameter at all."""
    with _lock:
        alive = [graph for one in _orphans if (graph := one()) is not None]
    return sum(bool(graph.report.rows) for graph in alive)
