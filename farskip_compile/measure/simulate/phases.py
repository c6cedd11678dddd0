# SPDX-License-Identifier: Apache-2.0
"""The graphs of a step as programs: as the model has them, on slower compute, and for two micro-batches.

In:    the ATen graphs of one capture, and its scenario.
Out:   a `PhaseProgram` for each graph.
Never: orders anything, but for the alternation of two micro-batches (`batches`).

What two micro-batches share: parameters, and what forward saves of them for backward. Tokens, and tables that depend on
positions alone, are counted as shared, too; a cache is not. Adding the gradients of one to those of the other is a
kernel for each parameter.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from torch import fx

from farskip_compile.costs.estimates import Estimates
from farskip_compile.costs.operators import OpCost, op_seconds
from farskip_compile.measure.simulate.attention import reads_cache
from farskip_compile.measure.simulate.batches import in_two_batches
from farskip_compile.measure.simulate.scenario import Scenario
from farskip_compile.passes.graph import effects
from farskip_compile.passes.schedule.from_graph import GraphProgram, read_program
from farskip_compile.passes.schedule.program import Program, TaskRole
from farskip_compile.passes.schedule.published import published_order
from farskip_compile.tools.capture import Graphs


@dataclass(frozen=True)
class PhaseProgram:
    """One graph as a program."""

    name: str
    """`inference`, `forward` or `backward`."""
    program: Program
    nodes: list[fx.Node] = field(default_factory=list)
    """Of its tasks; none of two micro-batches."""
    shared: tuple[int, ...] = ()
    """Inputs that micro-batches have in common, as places in the program's buffers."""
    sums: Mapping[int, float] = field(default_factory=dict)
    """Seconds of adding up what micro-batches make of the same buffer, by its place."""

    def written(self) -> tuple[int, ...]:
        """The order of the graph."""
        return tuple(range(len(self.program.tasks)))

    def published(self) -> tuple[int, ...]:
        """The order of AMD's engines."""
        return published_order(self.program, self.nodes, backward=self.name == "backward")

    def known(self) -> list[tuple[int, ...]]:
        """Orders for a search to begin with, beside that of the graph."""
        return [self.published()] if self.nodes else []

    def times(self, slower: float) -> PhaseProgram:
        """With compute that takes this many times as long."""
        if slower == 1.0:
            return self
        tasks = (
            task if task.role is TaskRole.LAUNCH else replace(task, seconds=task.seconds * slower)
            for task in self.program.tasks
        )
        sums = {place: seconds * slower for place, seconds in self.sums.items()}
        return replace(self, program=replace(self.program, tasks=tuple(tasks)), sums=sums)

    def in_two_batches(self) -> PhaseProgram:
        """Of one micro-batch: that of two."""
        orders = [self.written(), self.published()]
        return PhaseProgram(self.name, in_two_batches(self.program, orders, self.shared, self.sums))


def read_phases(scenario: Scenario, imbalance: float, graphs: Graphs) -> list[PhaseProgram]:
    """The programs of `graphs`; `imbalance`: rows of the fullest rank over the mean."""
    found, saved = [], set[str]()
    for phase, graph in graphs.phases:
        estimates = Estimates(graph, scenario.profile, imbalance, scenario.products == "float8", scenario.interference)
        one = read_program(graph, estimates)
        shared = _shared(one, saved)
        saved = _saved(graph, [one.made[place] for place in shared])
        gradients = _outputs(one) if phase == "backward" else ()
        sums = {place: _sum_seconds(one.program.buffers[place].size, scenario) for place in gradients}
        found.append(PhaseProgram(phase, one.program, one.nodes, shared, sums))
    return found


def _shared(one: GraphProgram, saved: Collection[str]) -> tuple[int, ...]:
    """Inputs that the caller keeps, and what forward `saved` of them, without caches."""
    cached = {index for index, node in enumerate(one.nodes) if reads_cache(node)}
    return tuple(
        place
        for place, buffer in enumerate(one.program.buffers)
        if buffer.maker < 0 and (buffer.kept or one.made[place].name in saved) and cached.isdisjoint(buffer.users)
    )


def _saved(graph: fx.Graph, shared: Collection[fx.Node]) -> set[str]:
    """Names of the outputs of `graph` that are views of `shared` inputs: backward gets them by these names."""
    memory = {effects.storage(node) for node in shared} - {None}
    (output,) = graph.find_nodes(op="output")
    return {node.name for node in output.all_input_nodes if effects.storage(node) in memory}


def _outputs(one: GraphProgram) -> list[int]:
    return [place for place, buffer in enumerate(one.program.buffers) if buffer.maker >= 0 and buffer.kept]


def _sum_seconds(size: int, scenario: Scenario) -> float:
    """Of adding so many bytes to others."""
    return op_seconds(OpCost(0, 2 * size, size, None, "memory"), scenario.profile)
