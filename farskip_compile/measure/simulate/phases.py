# SPDX-License-Identifier: Apache-2.0
"""The graphs of a step as programs: as captured, with slower compute, and for two micro-batches.

In:    the ATen graphs of one capture, and its scenario.
Out:   a `PhaseProgram` for each graph.
Never: orders anything, except for the alternation of two micro-batches (`batches`).

Two micro-batches share parameters, and views of parameters that forward saves for backward. Tokens, and tables that
depend on positions alone, count as shared, too; a cache does not. Adding the gradients of the two is one kernel for
each parameter.
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
    """The node of each task; empty for two micro-batches."""
    shared: tuple[int, ...] = ()
    """The inputs that micro-batches share, as places in the program's buffers."""
    sums: Mapping[int, float] = field(default_factory=dict)
    """Seconds for adding up the two micro-batches' values of a buffer, by its place."""

    def written(self) -> tuple[int, ...]:
        """Return the order of the graph."""
        return tuple(range(len(self.program.tasks)))

    def published(self) -> tuple[int, ...]:
        """Return the order of AMD's engines."""
        return published_order(self.program, self.nodes, backward=self.name == "backward")

    def known(self) -> list[tuple[int, ...]]:
        """Return orders for a search to begin with, in addition to that of the graph."""
        return [self.published()] if self.nodes else []

    def times(self, slower: float) -> PhaseProgram:
        """Return the same program with compute that takes `slower` times as long."""
        if slower == 1.0:
            return self
        tasks = (
            task if task.role is TaskRole.LAUNCH else replace(task, seconds=task.seconds * slower)
            for task in self.program.tasks
        )
        sums = {place: seconds * slower for place, seconds in self.sums.items()}
        return replace(self, program=replace(self.program, tasks=tuple(tasks)), sums=sums)

    def in_two_batches(self) -> PhaseProgram:
        """Return the program of two micro-batches, from that of one."""
        orders = [self.written(), self.published()]
        return PhaseProgram(self.name, in_two_batches(self.program, orders, self.shared, self.sums))


def read_phases(scenario: Scenario, imbalance: float, graphs: Graphs) -> list[PhaseProgram]:
    """Return the programs of `graphs`; `imbalance` is the rows of the fullest rank over the mean."""
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
    """Return the inputs that the caller keeps, and those that forward `saved` of them, without caches."""
    cached = {index for index, node in enumerate(one.nodes) if reads_cache(node)}
    return tuple(
        place
        for place, buffer in enumerate(one.program.buffers)
        if buffer.maker < 0 and (buffer.kept or one.made[place].name in saved) and cached.isdisjoint(buffer.users)
    )


def _saved(graph: fx.Graph, shared: Collection[fx.Node]) -> set[str]:
    """Return the names of outputs of `graph` that are views of `shared` inputs, by which backward reads them."""
    memory = {effects.storage(node) for node in shared} - {None}
    (output,) = graph.find_nodes(op="output")
    return {node.name for node in output.all_input_nodes if effects.storage(node) in memory}


def _outputs(one: GraphProgram) -> list[int]:
    return [place for place, buffer in enumerate(one.program.buffers) if buffer.maker >= 0 and buffer.kept]


def _sum_seconds(size: int, scenario: Scenario) -> float:
    """Return the seconds for adding `size` bytes to others."""
    return op_seconds(OpCost(0, 2 * size, size, None, "memory"), scenario.profile)
