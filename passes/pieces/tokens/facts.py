# SPDX-License-Identifier: Apache-2.0
"""Facts about a graph that all regions need, and the windows of it in which each region is looked for.

Contract: read once; walks stay inside of a window, so that all of them together are linear in the graph. A window goes
from what a pair of exchanges brought back to the dispatch after the next one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence

from torch import fx

from farskip_compile._compat import is_module_state
from farskip_compile.passes.graph import comms, effects
from farskip_compile.passes.graph.walk import spread, walk_back
from farskip_compile.passes.schedule.collectives import launches_with_waits

ExchangeMembers = Sequence[tuple[fx.Node, list[fx.Node]]]
"""Launches of exchanges that belong together, with their waits."""


def sizes_of(launch: fx.Node) -> list[fx.Node]:
    """Return the split sizes of an exchange that are no constants."""
    splits = [split for split in launch.args[1:3] if isinstance(split, list | tuple)]
    return [size for split in splits for size in split if isinstance(size, fx.Node)]


def exchanges_by_sizes(graph: fx.Graph, wanted: Callable[[fx.Node], bool] = lambda _: True) -> list[ExchangeMembers]:
    """Return the all-to-alls that are `wanted` and whose sizes data decides: those with the same sizes together."""
    together: dict[frozenset[object], list[tuple[fx.Node, list[fx.Node]]]] = defaultdict(list)
    for launch, waits in launches_with_waits(graph).items():
        if comms.is_all_to_all(launch) and sizes_of(launch) and wanted(launch):
            together[frozenset(map(tuple, launch.args[1:3]))].append((launch, waits))  # type: ignore[arg-type]
    return list(together.values())


def deciding(launch: fx.Node) -> set[fx.Node]:
    """Return the inputs of the call that decide where tokens go: in an exchange by gather, which tokens are gathered.

    Weights that are inputs of the call do not decide it, but for those before the first choice.
    """
    return {
        node
        for node in walk_back(sizes_of(launch) or [launch])
        if node.op == "placeholder" and not is_module_state(node)
    }


class TokenFacts:
    """Facts about the nodes of `graph`, as they are now; `begins` are the inputs that have rows."""

    def __init__(self, graph: fx.Graph, begins: Collection[fx.Node]) -> None:
        self.nodes = list(graph.nodes)
        self.place = {node: number for number, node in enumerate(self.nodes)}
        self.data = spread(self.nodes, begins.__contains__)
        """Nodes that depend on the inputs that have rows."""
        self.writers: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        for writer, bases in effects.writers(self.nodes).items():
            for base in bases:
                self.writers[base].append(writer)

    def took_place(self, new: fx.Node, old: fx.Node) -> None:
        """Record that a new node stands for an old one."""
        self.place[new] = self.place[old]
        self.data.add(new)

    def windows(self, pairs: Sequence[ExchangeMembers]) -> Iterator[tuple[ExchangeMembers, Window]]:
        """Yield each of `pairs`, which are in the order of the graph, with its window."""
        starts = [0, *(max(self.place[wait] for _, waits in members for wait in waits) + 1 for members in pairs)]
        ends = [*(min(self.place[launch] for launch, _ in members) for members in pairs[1:]), len(self.nodes)]
        for number, members in enumerate(pairs):
            yield members, Window(self, starts[number], ends[number])


class Window:
    """The nodes from number `start` to `end`."""

    def __init__(self, facts: TokenFacts, start: int, end: int) -> None:
        self.facts = facts
        self.start = start
        self.end = end

    def nodes(self) -> list[fx.Node]:
        """Return the nodes in the order of the graph."""
        return self.facts.nodes[self.start : self.end]

    def after(self, begin: Collection[fx.Node]) -> set[fx.Node]:
        """Return the nodes `begin`, and all in the window that depend on them."""
        return spread(self.nodes(), begin.__contains__)

    def before(self, ends: Collection[fx.Node]) -> set[fx.Node]:
        """Return the nodes `ends`, and all in the window that they depend on."""
        place = self.facts.place
        return set(walk_back(ends, lambda node: not self.start <= place.get(node, -1) < self.end))

    def ordered(self, nodes: Collection[fx.Node]) -> list[fx.Node]:
        """Return `nodes` in the order of the graph."""
        return sorted(nodes, key=self.facts.place.__getitem__)
