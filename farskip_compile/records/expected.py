# SPDX-License-Identifier: Apache-2.0
"""How much communication is expected to be hidden, by the schedules of the graphs that have run.

In:    for each place that is run once in a step (a model, or each of its layers) the graphs that may run there (`ran`).
Out:   an `PhaseOverlap` for each phase; if nothing is scheduled, why not.
Never: measures. `farskip overlap` does, of profiles.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from farskip_compile.records.ran import Graph

PHASES = ("forward", "backward", "inference")


@dataclass(frozen=True)
class PhaseOverlap:
    """Estimates for one phase of one step of one rank."""

    phase: str
    """`forward`, `backward` or `inference`."""
    communication_seconds: float
    """Sum over its collectives."""
    exposed_seconds: float
    """Time in which compute stands still for a collective."""
    profile: str
    """Name of the hardware profile that they come from."""

    @property
    def hidden(self) -> float | None:
        """Fraction of the communication; None: there is none."""
        if not self.communication_seconds:
            return None
        return max(0.0, 1 - self.exposed_seconds / self.communication_seconds)

    def __str__(self) -> str:
        if self.hidden is None:
            return f"no communication in the {self.phase} graph"
        return f"{self.hidden:.0%} of the {self.phase} communication ({self.profile})".replace("%", " %")

    def to_json(self) -> dict[str, str | float | None]:
        """Plain data for `json.dumps`."""
        return {
            "phase": self.phase,
            "hidden": self.hidden,
            "communication_seconds": self.communication_seconds,
            "exposed_seconds": self.exposed_seconds,
            "profile": self.profile,
        }


def expected(places: Iterable[Sequence[Graph]]) -> tuple[PhaseOverlap, ...]:
    """One for each phase that is scheduled. At each place, the graph counts that has run last."""
    places = list(places)
    found = []
    for phase in PHASES:
        latest = [max(here, key=lambda one: one.last) for graphs in places if (here := _with(graphs, phase))]
        schedules = [graph.schedules[phase] for graph in latest]
        figures = [one.after for one in schedules if one.after is not None]
        if figures:
            communication = sum(one.communication_seconds for one in figures)
            exposed = sum(one.exposed_seconds for one in figures)
            names = dict.fromkeys(one.profile for one in schedules if one.after is not None)
            found.append(PhaseOverlap(phase, communication, exposed, ", ".join(names)))
    return tuple(found)


def _with(graphs: Sequence[Graph], phase: str) -> list[Graph]:
    return [one for one in graphs if phase in one.schedules]


def why_none(places: Iterable[Sequence[Graph]]) -> str:
    """Why nothing is known about overlap, where `expected` gives nothing."""
    graph = next((one for graphs in places for one in graphs), None)
    if graph is None:
        return "no graph has run"
    config = graph.report.config
    if graph.ranks == 1:
        return "one process"
    if config.get("inner") != "inductor":
        return f"inner={config.get('inner')!r} schedules nothing"
    if not config.get("schedule"):
        return "schedule=False"
    return "no collective in its graphs"
