# SPDX-License-Identifier: Apache-2.0
"""The numbers that the values of a graph must have once some sub-blocks leave terms out of what they read.

Contract: `read_wiring` records a graph before it is rewired; `Expected` says what must come out, from the terms that
each sub-block leaves out. Nothing here looks at the rewired graph, or at what `rewire` and its helpers do.

Algorithm: the graph before rewiring is evaluated (`values`) in its order, with one difference. Where a sub-block
that changes reads a residual value, it gets the number of that value with the terms that it leaves out set to zero, by
the coefficients that they have in it. Whatever lies between these terms and the value, and belongs to no sub-block, is
evaluated anew with them set to zero: also an index, a mask, or rows that were picked to be written back. A node through
which several sub-blocks read, such as the one norm of a parallel block, has a number for each of them. Linear in the
graph and in the sums that change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

from torch import fx

from farskip_compile.passes.graph.walk import walk_back
from farskip_compile.passes.residual import Reading
from farskip_compile.passes.residual.termset import TermSet
from farskip_compile.verify.steps import NumberedGraph
from farskip_compile.verify.values import read_steps


@dataclass(frozen=True)
class Wiring:
    """A graph as steps, and which of them read the residual stream for which sub-block. Nodes by place."""

    program: NumberedGraph
    place_of: Mapping[str, int]
    """By name of a node."""
    owner: Mapping[int, str]
    """The sub-block that a node is computed for."""
    visitors: Mapping[int, Sequence[str]]
    """Other sub-blocks that read the stream through it."""
    values: frozenset[int]
    """Residual values."""
    terms: Mapping[int, TermSet]
    """What residual values and all other sums of terms hold."""
    between: Set[int]
    """Places of the nodes that lie between residual values and belong to no sub-block."""
    reads: Mapping[str, TermSet]
    """What each sub-block reads."""


def read_wiring(reading: Reading) -> Wiring:
    """Record the graph of `reading`."""
    stream, rows = reading.stream, reading.table.rows
    program = read_steps(stream.flow)
    place_of = stream.order
    sums = dict(stream.sums())
    owner = {node: row.name for row in rows for index in row.terms for node in reading.regions[index].owned}
    return Wiring(
        program,
        {step.name: place for place, step in enumerate(program.steps)},
        {place_of[node]: row for node, row in owner.items()},
        _visitors(reading, owner),
        frozenset(place_of[node] for node in stream.values),
        {place_of[node]: held for node, held in sums.items()},
        _between(program, {place_of[node] for node in sums}, {place_of[node] for node in owner}),
        {row.name: row.reads for row in rows},
    )


def _between(program: NumberedGraph, sums: Set[int], owned: Set[int]) -> Set[int]:
    """Find the nodes that depend on one of `sums`, lead to another, and are not `owned`."""
    behind: set[int] = set()
    for place, step in enumerate(program.steps):
        if place not in owned and any(one in sums or one in behind for one in (*step.inputs, *step.after)):
            behind.add(place)
    leads_on: set[int] = set()
    for place in reversed(range(len(program.steps))):
        if place in sums or place in leads_on:
            step = program.steps[place]
            leads_on.update(one for one in (*step.inputs, *step.after) if one in behind and one not in sums)
    return leads_on


def _visitors(reading: Reading, owner: Mapping[fx.Node, str]) -> dict[int, list[str]]:
    """For each node of a sub-block the others that read the stream through it."""
    stream = reading.stream
    visitors: dict[int, list[str]] = {}
    for row in reading.table.rows:
        met = [node for index in row.terms for node in reading.regions[index].met]

        def ends(node: fx.Node, name: str = row.name) -> bool:
            return stream.is_residual(node) or owner.get(node, name) == name

        for node in walk_back(met, ends, stream.inputs):
            visitors.setdefault(stream.order[node], []).append(row.name)
    return visitors


class Expected:
    """What must come out of the graph of `wiring` once each sub-block, by name, leaves out the terms of `left_out`."""

    def __init__(self, wiring: Wiring, left_out: Mapping[str, TermSet]) -> None:
        self.numbers: list[tuple[int, ...]] = []
        """For each node its number; more than one where sub-blocks that read the stream through it must see different
        ones."""
        self._wiring = wiring
        self._left_out = left_out
        self._own: list[int] = []
        self._seen_by: dict[tuple[int, str], int] = {}
        """Numbers of nodes for those that visit them."""
        self._reduced: dict[tuple[int, TermSet], int] = {}
        self._apart = {*left_out, *(row for rows in wiring.visitors.values() for row in rows)}
        """Sub-blocks that may see another number of a node than others do."""
        for place, step in enumerate(wiring.program.steps):
            own = step.number(self._reader(place))
            self._own.append(own)
            if place not in wiring.visitors:
                self.numbers.append((own,))
                continue
            visits = {(place, row): step.number(self._read_by(row)) for row in wiring.visitors[place]}
            self._seen_by.update(visits)
            self.numbers.append((own, *visits.values()))

    def read(self, place: int) -> list[int]:
        """The numbers that a node must read, of its inputs."""
        return list(map(self._reader(place), self._wiring.program.steps[place].inputs))

    def _reader(self, place: int) -> Callable[[int], int]:
        """The number of an input of a node, by place."""
        owner = self._wiring.owner.get(place)
        return self._read_by(owner) if owner in self._apart else self._own.__getitem__

    def _read_by(self, row: str) -> Callable[[int], int]:
        """The number of a node for `row`, by place."""
        dropped = self._left_out.get(row, TermSet())

        def of(arg: int) -> int:
            if arg in self._wiring.values:
                return self._without(arg, dropped)
            return self._seen_by.get((arg, row), self._own[arg])

        return of

    def _without(self, place: int, dropped: TermSet) -> int:
        """The number of a sum with terms set to zero."""
        steps = self._wiring.program.steps
        needed = [place]
        for one in needed:  # grows
            if self._is_new(one, dropped) and (one, self._gone(one, dropped)) not in self._reduced:
                needed.extend(arg for arg in (*steps[one].inputs, *steps[one].after) if self._holds(arg))

        def of(arg: int) -> int:
            gone = self._gone(arg, dropped)
            if not gone:
                return self._own[arg]
            return 0 if self._is_whole(arg, dropped) else self._reduced[arg, gone]

        for one in sorted(set(needed)):
            key = one, self._gone(one, dropped)
            if self._is_new(one, dropped) and key not in self._reduced:
                self._reduced[key] = steps[one].number(of)
        return of(place)

    def _holds(self, place: int) -> bool:
        """Return whether a value is a sum of terms, or lies between two of them."""
        return place in self._wiring.terms or place in self._wiring.between

    def _gone(self, place: int, dropped: TermSet) -> TermSet:
        """The terms that are to be set to zero in a value; all of them in one that is no sum."""
        if place in self._wiring.between:
            return dropped
        return dropped & self._wiring.terms[place] if place in self._wiring.terms else TermSet()

    def _is_whole(self, place: int, dropped: TermSet) -> bool:
        """Return whether all terms of a sum are to be set to zero."""
        return place in self._wiring.terms and not self._wiring.terms[place] - dropped

    def _is_new(self, place: int, dropped: TermSet) -> bool:
        """Return whether a value has another number without the terms, and is not zero."""
        if place in self._wiring.between:
            return True
        held = self._wiring.terms.get(place, TermSet())
        return bool(held & dropped) and bool(held - dropped)
