# SPDX-License-Identifier: Apache-2.0
"""The numbers that the values of a graph must have once some sub-blocks leave terms out of what they read.

Contract: `read_wiring` records a graph before it is rewired; `Expected` says what must come out, from the terms that
each sub-block leaves out. Nothing here looks at the rewired graph, or at what `rewire` and its helpers do.

Algorithm: the graph before rewiring is evaluated (`values`) in its order, with one difference. Where a sub-block
that changes reads a residual value, it gets the number of that value with the terms that it leaves out set to zero, by
the coefficients that they have in it. A node through which several sub-blocks read, such as the one norm of a parallel
block, has a number for each of them. Linear in the graph and in the sums that change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from farskip_compile.passes.graph.walk import walk_back
from farskip_compile.passes.residual import Reading
from farskip_compile.passes.residual.termset import TermSet
from farskip_compile.verify.values import Steps, read_steps


@dataclass(frozen=True)
class Wiring:
    """A graph as steps, and which of them read the residual stream for which sub-block. Nodes by place."""

    program: Steps
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
    below: Mapping[int, tuple[int, ...]]
    """What these are sums or linear images of."""
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
        {place_of[node]: tuple(place_of[arg] for arg in stream.below[node]) for node in sums},
        {row.name: row.reads for row in rows},
    )


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
        terms, below = self._wiring.terms, self._wiring.below
        needed = [place]
        for one in needed:  # grows
            if self._is_changed(one, dropped) and (one, dropped & terms[one]) not in self._reduced:
                needed.extend(below[one])

        def of(arg: int) -> int:
            gone = dropped & terms[arg] if arg in terms else TermSet()
            if not gone:
                return self._own[arg]
            return self._reduced[arg, gone] if terms[arg] - gone else 0

        for one in sorted(set(needed)):
            key = one, dropped & terms[one]
            if self._is_changed(one, dropped) and key not in self._reduced:
                summands = below[one]
                self._reduced[key] = self._wiring.program.steps[one].number(
                    lambda arg, own=summands: of(arg) if arg in own else self._own[arg]  # type: ignore[misc]
                )
        return of(place)

    def _is_changed(self, place: int, dropped: TermSet) -> bool:
        """Whether some of the terms are in the sum, and others stay."""
        held = self._wiring.terms[place]
        return bool(held & dropped) and bool(held - dropped)
