"""What the overlap report holds, as data.

Contract: times are whole nanoseconds. `exposed_ns` is the time during which a collective is in flight and no compute
of the same rank runs; it is measured on unions of intervals, so that two collectives or two kernels at once
count once; therefore the parts of a table may add up to more than the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from farskip_compile.profiling.estimated import EstimateReport
from farskip_compile.profiling.trace import Device, Trace


@dataclass(frozen=True)
class Hider:
    """A kernel or operator that ran while a collective was in flight."""

    name: str
    time_ns: int
    """How long both ran."""

    def to_json(self) -> dict[str, Any]:
        """For `json.dumps`."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Communication time, and how much of it was exposed."""

    communication_ns: int
    exposed_ns: int

    @property
    def hidden_ns(self) -> int:
        """Time in flight during which compute ran."""
        return self.communication_ns - self.exposed_ns

    @property
    def fraction(self) -> float | None:
        """1 - exposed / communication; None without communication."""
        return self.hidden_ns / self.communication_ns if self.communication_ns else None

    def to_json(self) -> dict[str, Any]:
        """All fields, and what follows from them; for `json.dumps`."""
        plain = {
            name: [part.to_json() for part in value] if isinstance(value, tuple) else value
            for name, value in vars(self).items()
        }
        return {**plain, "hidden_ns": self.hidden_ns, "overlap": self.fraction}


@dataclass(frozen=True, kw_only=True)
class CollectiveReport(Overlap):
    """One collective of one rank. `communication_ns` is how long it was in flight."""

    index: int
    """Its place among the rank's collectives, by start."""
    kind: str
    group: str | None
    """Process group, if the trace says."""
    layer: int | None
    """Layer, if it is known."""
    start_ns: int
    """Since the first moment of the report."""
    peer_wait_ns: int | None
    """How much of its time it waited for the last rank to join; None if that is not known. An upper bound: some
    collectives have work to do before all ranks are there."""
    hidden_by: tuple[Hider, ...]
    """Longest first. Concurrent kernels of several streams each count."""


@dataclass(frozen=True, kw_only=True)
class PartReport(Overlap):
    """Some collectives of one rank together: those of a kind, or those of a layer."""

    name: str
    count: int
    hidden_by: tuple[Hider, ...]


@dataclass(frozen=True, kw_only=True)
class RankReport(Overlap):
    """All collectives of one rank."""

    rank: int
    compute_ns: int
    """Time during which any compute ran."""
    waiting_ns: int | None
    """Exposed time that a thread spent in a wait; the rest of it is Python or kernels without an event. None on GPU,
    where the host does not wait."""
    peer_wait_ns: int | None
    """Time during which all collectives in flight waited for a rank that had not joined; None if not known."""
    hidden_by: tuple[Hider, ...]
    kinds: tuple[PartReport, ...]
    layers: tuple[PartReport, ...]
    """By layer, in order; collectives of unknown layer come last, as `?`. Empty if no layer is known."""
    collectives: tuple[CollectiveReport, ...]


@dataclass(frozen=True)
class OverlapReport:
    """Exposed communication of one or several ranks."""

    ranks: tuple[RankReport, ...]
    """In order of rank."""
    device: Device
    world_size: int | None
    """None if the traces do not say."""
    peer_wait_subtracted: bool
    """Whether collectives count from the moment at which the last rank joined."""
    notes: tuple[str, ...]
    estimates: tuple[EstimateReport, ...]
    """Each scheduled graph, and their sum: estimate and measurement. Empty if the traces hold no schedule."""
    traces: tuple[Trace, ...] = field(repr=False, compare=False)
    """What the report was made of, in order of rank; for drawings."""

    @property
    def total(self) -> Overlap:
        """Sum over the ranks."""
        return Overlap(
            communication_ns=sum(rank.communication_ns for rank in self.ranks),
            exposed_ns=sum(rank.exposed_ns for rank in self.ranks),
        )

    def to_json(self) -> dict[str, Any]:
        """For `json.dumps`. Times in nanoseconds, `overlap` as a fraction."""
        return {
            "device": str(self.device),
            "world_size": self.world_size,
            "peer_wait_subtracted": self.peer_wait_subtracted,
            "total": self.total.to_json(),
            "notes": list(self.notes),
            "estimates": [graph.to_json() for graph in self.estimates],
            "ranks": [rank.to_json() for rank in self.ranks],
        }
