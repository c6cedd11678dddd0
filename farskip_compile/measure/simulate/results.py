# SPDX-License-Identifier: Apache-2.0
"""A prediction: one step in several orders, as data, as JSON, and by kind of collective.

Contract: plain data; seconds and bytes, nothing rounded. Exposed time and its reasons are read off the order.

Collectives are of one kind if the same operator computes the same terms of the residual stream, whatever the layer. The
reasons for exposed time:

    waits for its turn          the channel or the link was busy at the launch; the only possible delay of a collective
                                beside which enough is computed
    nothing left to compute     next to no compute stood between launch and wait: all that was left needed the result
    too little to compute       some did, and took less time than the collective
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from farskip_compile.measure.simulate.scenario import Scenario
from farskip_compile.passes.schedule.program import Program, TaskRole
from farskip_compile.passes.schedule.timeline import ScheduledFlight, Timeline

ORDERS = ("written", "scheduled", "published", "farskip")
NEXT_TO_NOTHING = 0.1
"""A fraction of a collective's time."""


@dataclass(frozen=True)
class PhaseResult:
    """One graph in one order."""

    phase: str
    """`inference`, `forward` or `backward`."""
    program: Program = field(repr=False)
    """The tasks, with their estimated seconds."""
    order: tuple[int, ...] = field(repr=False)
    """Indices of the tasks, in the order of the compute stream."""
    timeline: Timeline = field(repr=False)
    """The start and the end of each task."""
    flights: tuple[ScheduledFlight, ...] = field(repr=False)
    """Each collective: launch, wait and the compute in between."""

    def to_json(self) -> dict[str, Any]:
        """Return all but the tasks."""
        line = self.timeline
        return {
            "seconds": line.makespan,
            **{name: getattr(line, name) for name in ("compute", "communication", "exposed")},
            "collectives": [asdict(row) for row in exposed_rows(self)],
        }


@dataclass(frozen=True)
class StepResult:
    """One step in one order; all times in seconds."""

    phases: tuple[PhaseResult, ...]
    """One graph, or forward and backward."""

    @property
    def seconds(self) -> float:
        """Seconds from the start until everything is finished."""
        return sum(one.timeline.makespan for one in self.phases)

    @property
    def compute(self) -> float:
        """Seconds of the compute stream."""
        return sum(one.timeline.compute for one in self.phases)

    @property
    def communication(self) -> float:
        """Seconds of all collectives."""
        return sum(one.timeline.communication for one in self.phases)

    @property
    def exposed(self) -> float:
        """Seconds in which the compute stream is idle because of a collective."""
        return sum(one.timeline.exposed for one in self.phases)

    @property
    def hidden(self) -> float:
        """The fraction of the communication that overlaps compute; 0 without communication."""
        return 1 - self.exposed / self.communication if self.communication else 0.0

    @property
    def peak_bytes(self) -> int:
        """Most bytes alive at once, with parameters and inputs."""
        return max(one.timeline.peak_bytes for one in self.phases)

    def hidden_in(self, phase: str) -> float:
        """Return `hidden` of one phase."""
        return StepResult(tuple(one for one in self.phases if one.phase == phase)).hidden

    def to_json(self) -> dict[str, Any]:
        """Return all but the tasks."""
        names = ("seconds", "compute", "communication", "exposed", "hidden", "peak_bytes")
        phases = {one.phase: one.to_json() for one in self.phases}
        return {**{name: getattr(self, name) for name in names}, "phases": phases}


@dataclass(frozen=True)
class Prediction:
    """The prediction of a scenario in several orders."""

    scenario: Scenario
    """The question."""
    written: StepResult
    """The model as written, each wait at its place."""
    scheduled: StepResult
    """The model as written, in our order."""
    published: StepResult
    """FarSkip, with AMD's placement of launches and waits."""
    farskip: StepResult
    """FarSkip, in our order."""
    imbalance: float
    """Rows of the fullest rank over the mean."""
    parameters: int
    """The number of parameters on one rank."""
    nodes: int
    """Nodes of the captured graph."""
    rewired: str
    """The summary of the passes."""
    also: Mapping[str, StepResult] = field(default_factory=dict)
    """The other steps on request, in our order: in pieces, in two micro-batches, other connectivities."""
    slower: float = 1.0
    """The factor by which compute takes longer than the profile says."""
    took: Mapping[str, float] = field(default_factory=dict, compare=False)
    """Seconds that the prediction took: `model`, `graphs` (of these `passes` for rewiring), `orders`."""

    @property
    def orders(self) -> dict[str, StepResult]:
        """All steps, by name."""
        return {**{name: getattr(self, name) for name in ORDERS}, **self.also}

    @property
    def speedup(self) -> float:
        """Time as written over time under FarSkip, in our order."""
        return self.written.seconds / self.farskip.seconds

    @property
    def published_speedup(self) -> float:
        """Time as written over time under FarSkip, in AMD's order."""
        return self.written.seconds / self.published.seconds

    @property
    def scheduled_speedup(self) -> float:
        """Time as written over time of overlapping without FarSkip."""
        return self.written.seconds / self.scheduled.seconds


def prediction_json(found: Prediction) -> dict[str, Any]:
    """All of a prediction but its tasks, for `json.dumps`."""
    scenario = found.scenario
    return {
        "scenario": {
            "model": scenario.architecture.name,
            "source": scenario.architecture.source,
            "device": scenario.profile.name,
            "profile": scenario.profile.digest(),
            "phase": str(scenario.phase),
            **{name: getattr(scenario, name) for name in ("ranks", "ep", "tp", "batch", "prompt")},
            "exchange": scenario.exchanges,
            **{
                name: getattr(scenario, name)
                for name in ("products", "skew", "layers", "interference", "measured", "pieces", "micro_batches")
            },
            "slower": scenario.slower,
        },
        "imbalance": found.imbalance,
        "compute_slower": found.slower,
        "parameters": found.parameters,
        "nodes": found.nodes,
        "rewired": found.rewired,
        "orders": {name: step.to_json() for name, step in found.orders.items()},
        "speedup": {n: found.written.seconds / step.seconds for n, step in found.orders.items() if n != "written"},
        "seconds_taken": dict(found.took),
    }


@dataclass(frozen=True)
class ExposedRow:
    """The collectives of one kind, in one phase."""

    phase: str
    operator: str
    """The name of the functional operator."""
    terms: tuple[str, ...]
    """Kinds of the terms that it computes: a attention, s shared experts, r routed experts, m dense feed-forward."""
    count: int
    seconds: float
    """Total seconds on the wire."""
    exposed: float
    reason: str
    """The reason for most of the exposed time; empty if next to nothing is exposed."""
    example: str
    """The collective with most exposed time, by the terms that it computes."""


def exposed_rows(result: PhaseResult) -> tuple[ExposedRow, ...]:
    """Return the kinds of collectives of `result`, most exposed first."""
    issued = _issue_times(result)
    groups: dict[tuple[str, tuple[str, ...]], list[ScheduledFlight]] = defaultdict(list)
    for flight in result.flights:
        kinds = tuple(dict.fromkeys(term[0] for term in flight.terms))
        groups[re.sub(r"(_\d+)?'?$", "", flight.launch), kinds].append(flight)  # ': of the second micro-batch
    rows = []
    for (operator, kinds), members in groups.items():
        exposed = sum(flight.exposed for flight in members)
        seconds = sum(flight.seconds for flight in members)
        blame: dict[str, float] = defaultdict(float)
        for flight in members:
            blame[_reason(flight, issued[flight.launch])] += flight.exposed
        worst = max(members, key=lambda flight: flight.exposed)
        reason = max(blame, key=lambda name: blame[name]) if exposed > 0.01 * seconds else ""
        example = " + ".join(worst.terms) or worst.launch
        rows.append(ExposedRow(result.phase, operator, kinds, len(members), seconds, exposed, reason, example))
    return tuple(sorted(rows, key=lambda row: -row.exposed))


def _issue_times(result: PhaseResult) -> dict[str, float]:
    """Return the time at which the compute stream gets to each launch, by the launch's name."""
    found, now = {}, 0.0
    for index in result.order:
        task = result.program.tasks[index]
        if task.role is TaskRole.LAUNCH:
            found[task.name] = now
        else:
            now = result.timeline.end[index]
    return found


def _reason(flight: ScheduledFlight, issued: float) -> str:
    if flight.start - issued > 0.5 * flight.exposed or flight.compute >= flight.seconds:
        return "waits for its turn"
    return "nothing left to compute" if flight.compute < NEXT_TO_NOTHING * flight.seconds else "too little to compute"
