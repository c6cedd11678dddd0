# SPDX-License-Identifier: Apache-2.0
"""Proof of the table that was read: each sum holds the terms that it is said to hold, each sub-block reads what it is
said to read.

Contract: takes the claims of a reading (which nodes are terms and sums, what they hold, who owns a node) and the steps
of the graph, which are made without them; raises where both differ, and changes nothing. Without this, rewriter and
proof would believe one reading. Linear in the graph.

Algorithm, one walk over the steps and one over those of each sub-block:
1. A core holds itself. Any other sum holds what its summands hold, each term once.
2. The newest value of each step: the newest residual value that reaches it without passing another sum.
3. From its term, a sub-block is followed back through what it owns. It reads the residual values and the terms that it
   meets, and the newest value of the nodes of others through which it is said to read. What it is said to use beside
   the stream is older than the newest value that it reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_

from torch import fx

from farskip_compile.errors import VerificationError
from farskip_compile.passes.graph import user_calls
from farskip_compile.passes.residual import Reading
from farskip_compile.passes.residual.regions import Region
from farskip_compile.passes.residual.termset import TermSet
from farskip_compile.verify.steps import NumberedStep

UsedPlaces = Sequence[Sequence[int]]
"""The places of the steps that each step is computed from, writes to their memory included."""
NOTHING = TermSet()


def check_reading(reading: Reading, steps: Sequence[NumberedStep]) -> None:
    """Check what `reading` says of the graph with these `steps`, in the order of its nodes.

    Raises:
        VerificationError: a sum holds other terms than was said, or a sub-block reads others.
    """
    stream = reading.stream
    place_of = stream.order
    held = {place_of[node]: terms for node, terms in stream.sums()}
    _check_sums(reading, steps, held)
    written = {place_of[node]: [place_of[write] for write in writes] for node, writes in stream.flow.after.items()}
    uses = [(*step.inputs, *written[place]) if place in written else step.inputs for place, step in enumerate(steps)]
    newest = _newest_values(uses, held)
    owner = {place_of[node]: index for index, region in enumerate(reading.regions) for node in region.owned}
    row_of = {index: row for row in reading.table.rows for index in row.terms}
    for index, region in enumerate(reading.regions):
        if not region.owned:
            continue
        found = _read_by(reading, uses, region, owner, index, held, newest)
        said = row_of[index].reads if index in row_of else NOTHING
        if found != said:
            names = reading.table.names
            raise _error(
                region.leaf,
                f"{row_of[index].name if index in row_of else reading.table.terms[index].name} was said to read "
                f"{names(said - found) or 'nothing'} that it does not, and reads {names(found - said) or 'nothing'} "
                "that was not said",
            )


def _check_sums(reading: Reading, steps: Sequence[NumberedStep], held: Mapping[int, TermSet]) -> None:
    """Step 1."""
    stream = reading.stream
    cores = {stream.order[core]: index for index, core in enumerate(stream.cores)}
    for place, said in held.items():
        if place in cores:
            found = TermSet.of([cores[place]])
        else:
            parts = [held[one] for one in steps[place].inputs if one in held]
            found = reduce(or_, parts, NOTHING)
            if sum(map(len, parts)) != len(found):
                found = NOTHING
        if found != said:
            names = reading.table.names
            raise _error(
                stream.flow.nodes[place],
                f"a sum was said to hold {names(said)}, and its summands hold {names(found) or 'no terms, each once'}",
            )


def _newest_values(uses: UsedPlaces, held: Mapping[int, TermSet]) -> dict[int, TermSet]:
    """Step 2: what the newest value that reaches a step holds; a step that no value reaches is left out."""
    newest: dict[int, TermSet] = {}
    for place, used in enumerate(uses):
        best = NOTHING
        for one in used:
            terms = held.get(one)
            if terms is None or 0 not in terms:
                terms = newest.get(one, NOTHING)
            if terms is not best and _age(terms) > _age(best):
                best = terms
        if best:
            newest[place] = best
    return newest


def _read_by(
    reading: Reading,
    uses: UsedPlaces,
    region: Region,
    owner: Mapping[int, int],
    index: int,
    held: Mapping[int, TermSet],
    newest: Mapping[int, TermSet],
) -> TermSet:
    """Step 3: the terms that one sub-block reads."""
    place_of = reading.stream.order
    through = {place_of[node] for node in region.met}
    beside = {place_of[node] for node in region.side_channels}
    leaf, itself = place_of[region.leaf], TermSet.of([index])
    values: list[TermSet] = []
    others: list[TermSet] = []
    older: list[TermSet] = []
    waiting, seen = [leaf], {leaf}
    while waiting:
        for one in uses[waiting.pop()]:
            if one in seen:
                continue
            seen.add(one)
            if one in held and held[one] != itself:
                (values if 0 in held[one] else others).append(held[one])
            elif one not in newest:
                continue  # no residual value reaches the node: a size of one, a mask, a position
            elif one in through:
                values.append(newest[one])
            elif one in beside:
                older.append(newest[one])
            elif owner.get(one) != index:
                raise _error(
                    reading.stream.flow.nodes[one],
                    "it is used by a sub-block that was said neither to own it nor to read through it",
                )
            else:
                waiting.append(one)
    limit = max(map(_age, values), default=(-1, 0))
    if any(_age(one) >= limit for one in older):
        raise _error(region.leaf, "what it was said to use beside the stream is as new as what it reads")
    return reduce(or_, (*values, *others), NOTHING)


def _age(terms: TermSet) -> tuple[int, int]:
    return terms.newest, len(terms)


def _error(node: fx.Node, reason: str) -> VerificationError:
    return VerificationError(
        f"{user_calls.shown(node)!r}: {reason}",
        way_out="nothing was compiled; please report this with the output of `farskip explain`. It is a defect of "
        "farskip-compile",
        where=user_calls.where(node),
    )
