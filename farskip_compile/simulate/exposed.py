"""Which collectives are still exposed in an order, and why.

In:    a `PhaseResult`.
Out:   a row for each kind of collective: how many, how long on the wire, how much of that exposed, and the reason of
       most of it.
Never: guesses: a reason is read off the order.

Collectives are alike if the same operator computes the same terms of the residual stream, whatever the layer. Reasons:

    waits for its turn          the channel or the link was busy when it was launched: that is all that can hold up one
                                under which enough is computed
    nothing left to compute     next to no compute stood between its launch and its wait: all that was left needed it
    too little to compute       some did, and took less time than it does
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from farskip_compile.passes.schedule.program import Role
from farskip_compile.passes.schedule.timeline import Flight
from farskip_compile.simulate.predict import PhaseResult

NEXT_TO_NOTHING = 0.1
"""Part of a collective's time."""


@dataclass(frozen=True)
class ExposedRow:
    """The collectives of one kind, in one phase."""

    phase: str
    operator: str
    """As the functional operator is called."""
    terms: tuple[str, ...]
    """Kinds of the terms that it computes: a attention, s shared experts, r routed experts, m dense feed-forward."""
    count: int
    seconds: float
    """On the wire, all together."""
    exposed: float
    reason: str
    """Of most of what is exposed; empty if next to nothing is."""
    example: str
    """The one with most exposed, by the terms that it computes."""


def exposed_rows(result: PhaseResult) -> tuple[ExposedRow, ...]:
    """The kinds of collectives of `result`, most exposed first."""
    issued = _issued(result)
    groups: dict[tuple[str, tuple[str, ...]], list[tuple[Flight, float]]] = defaultdict(list)
    for flight in result.flights:
        kinds = tuple(dict.fromkeys(term[0] for term in flight.terms))
        groups[re.sub(r"_\d+$", "", flight.launch), kinds].append((flight, issued[flight.launch]))
    rows = []
    for (operator, kinds), members in groups.items():
        exposed = sum(flight.exposed for flight, _ in members)
        seconds = sum(flight.seconds for flight, _ in members)
        blame: dict[str, float] = defaultdict(float)
        for flight, moment in members:
            blame[_reason(flight, moment)] += flight.exposed
        worst = max(members, key=lambda pair: pair[0].exposed)[0]
        reason = max(blame, key=lambda name: blame[name]) if exposed > 0.01 * seconds else ""
        example = " + ".join(worst.terms) or worst.launch
        rows.append(ExposedRow(result.phase, operator, kinds, len(members), seconds, exposed, reason, example))
    return tuple(sorted(rows, key=lambda row: -row.exposed))


def _issued(result: PhaseResult) -> dict[str, float]:
    """When each launch is issued: when the compute stream gets to it, by its name."""
    found, now = {}, 0.0
    for index in result.order:
        task = result.program.tasks[index]
        if task.role is Role.LAUNCH:
            found[task.name] = now
        else:
            now = result.timeline.end[index]
    return found


def _reason(flight: Flight, issued: float) -> str:
    if flight.start - issued > 0.5 * flight.exposed or flight.compute >= flight.seconds:
        return "waits for its turn"
    return "nothing left to compute" if flight.compute < NEXT_TO_NOTHING * flight.seconds else "too little to compute"
