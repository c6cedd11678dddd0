# SPDX-License-Identifier: Apache-2.0
"""The one registry of the compiles of this process: `COMPILES`.

In:    reports and schedules when they are published; graphs when they are compiled and when they run; failures.
Out:   the same, for `last_reports`, `status(model)` and the file that `farskip status` reads.
Never: keeps a graph, a module or a parameter alive.

Each subject (a graph, a model compiled layer by layer, a failure) has one entry, whose record is made anew each time
that it is asked for, so that all who ask see the same facts.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

if TYPE_CHECKING:
    from farskip_compile.records.compile import CompileReport
    from farskip_compile.records.layered import LayeredModel
    from farskip_compile.records.record import ProcessRecord
    from farskip_compile.records.runs import Graph
    from farskip_compile.records.schedule import ScheduleReport

KEPT_REPORTS = 256
"""Reports of compiles, and reports of schedules, that are kept."""
MOST_ENTRIES = 256
"""Entries that are kept. The oldest go first: parts of models, then all others, and at last functions that run as
written, which `status(model)` must not forget."""


@dataclass(frozen=True)
class Entry:
    """One subject of the registry."""

    record: Callable[[], ProcessRecord | None]
    """Makes the record; None once the subject is gone: the module, or what was compiled."""
    is_part: bool = False
    """The subject is a part of a model."""
    is_stop: bool = False
    """The subject is a function that Dynamo stopped compiling."""


class Compiles:
    """What happened in the compiles of one process. Thread-safe."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.reports: deque[tuple[object, CompileReport]] = deque(maxlen=KEPT_REPORTS)
        """With the compile that each report belongs to (a weak reference, or None)."""
        self.schedules: deque[ScheduleReport] = deque(maxlen=KEPT_REPORTS)
        self.late_seconds: dict[str, float] = {}
        """Never cleared: schedules depend on it, and one rank may forget its reports where another does not."""
        self.listening = threading.local()
        """Its attribute `taken` is called with the schedule of each graph that runs in the thread."""
        self.entries: dict[Hashable, Entry] = {}
        """Map each subject to its entry, oldest first."""
        self.wiring_said: WeakIdKeyDictionary = WeakIdKeyDictionary()
        """Map the first parameter of each model to the wirings that the line at its first step has told."""
        self.layered_models: weakref.WeakKeyDictionary[nn.Module, weakref.ref[LayeredModel]] = (
            weakref.WeakKeyDictionary()
        )
        """Map each layer that is compiled by itself to its model."""
        self.ticks = itertools.count(1)
        """Runs of graphs, in their order."""
        self.numbers = itertools.count(1)
        """Numbers of modules and subjects: an id may come again."""
        self._owners: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
        self._graphs: WeakIdKeyDictionary = WeakIdKeyDictionary()
        """Map each parameter to weak references to the graphs that were given it."""
        self._without_parameters: list[weakref.ref[Graph]] = []

    def after_fork(self) -> None:
        """Forget what the parent would tell of itself, in a process that was forked."""
        self.lock = threading.RLock()
        self.entries.clear()

    def owner_number(self, module: nn.Module | None) -> int | None:
        """Return the number of `module` in this process; the number of None is None."""
        if module is None:
            return None
        with self.lock:
            if module not in self._owners:
                self._owners[module] = next(self.numbers)
            return self._owners[module]

    def put(self, subject: Hashable, entry: Entry, *, last: bool = False) -> None:
        """Put the entry of `subject` in the place of an earlier one, or behind all others.

        Args:
            subject: what the entry is about.
            entry: the new entry.
            last: put the entry behind all others even if there was an earlier one.
        """
        with self.lock:
            if last:
                self.entries.pop(subject, None)
            self.entries[subject] = entry
            while len(self.entries) > MOST_ENTRIES:
                del self.entries[self._first_to_go()]

    def _first_to_go(self) -> Hashable:
        parts = (key for key, one in self.entries.items() if one.is_part)
        others = (key for key, one in self.entries.items() if not one.is_stop)
        return next(parts, next(others, next(iter(self.entries))))

    def records(self) -> list[ProcessRecord]:
        """Return the records of all subjects that are not gone, oldest first."""
        with self.lock:
            found = {subject: entry.record() for subject, entry in self.entries.items()}
            self.entries = {subject: entry for subject, entry in self.entries.items() if found[subject] is not None}
        return [record for record in found.values() if record is not None]

    def has_graph_of(self, frame: str) -> bool:
        """Return whether a graph is known of the function that Dynamo has given the number `frame`."""
        return any(getattr(one, "compile_id", "").startswith(f"{frame}/") for one in self.records())

    def forget_gone(self) -> bool:
        """Forget the subjects that are gone; return whether there were any."""
        before = len(self.entries)
        self.records()
        return len(self.entries) < before

    def note_run(self, graph: Graph, parameters: Mapping[int, torch.Tensor]) -> None:
        """Note that `graph` has run with these parameters, given by their place among its inputs."""
        reference = weakref.ref(graph)
        with self.lock:
            for place, parameter in parameters.items():
                graph.given[parameter] = place
                known = [one for one in self._graphs.get(parameter, ()) if one() is not None]
                if reference not in known:
                    self._graphs[parameter] = [*known, reference]
            if not parameters and reference not in self._without_parameters:
                alive = [one for one in self._without_parameters if one() is not None]
                self._without_parameters = [*alive, reference]

    def graphs_of(self, parameters: Iterable[torch.Tensor]) -> tuple[Graph, ...]:
        """Return each graph that has run with one of `parameters`, the one that ran last at the end."""
        found: dict[int, Graph] = {}
        with self.lock:
            for parameter in parameters:
                for reference in self._graphs.get(parameter, ()):
                    if (graph := reference()) is not None:
                        found[id(graph)] = graph
        return tuple(sorted(found.values(), key=lambda graph: graph.last))

    def graphs_without_parameters(self) -> int:
        """Count the graphs with a residual stack that have run with no parameter at all."""
        with self.lock:
            graphs: list[Any] = [reference() for reference in self._without_parameters]
        return sum(graph is not None and bool(graph.report.rows) for graph in graphs)


COMPILES = Compiles()
"""The compiles of this process."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=COMPILES.after_fork)
