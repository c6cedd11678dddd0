# SPDX-License-Identifier: Apache-2.0
"""Traces, and the reports about them, as plain data.

Contract: nothing is judged here: `read.py` fills a `Trace`, `measure.py` and `estimated.py` make the reports. Times are
whole nanoseconds; those of a trace count from the epoch (the profiler's clock). `exposed_ns` is the time during which a
collective is in flight and no compute of the same rank runs. It is measured on unions of intervals, so that two
collectives or two kernels at once count once, and the parts of a table may add up to more than the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from farskip_compile.base.json_files import JsonRecord
from farskip_compile.measure.profiling.intervals import Segment, Span, union


class CollectiveDevice(StrEnum):
    """The device that runs the collectives of a trace, which decides which events are compute."""

    CPU = "cpu"
    """Gloo, on threads of the host."""
    GPU = "gpu"
    """NCCL, RCCL and others, on streams of a CUDA or HIP device."""


@dataclass(frozen=True, slots=True)
class Collective:
    """One collective of one rank, from the start of its work to its end; None for facts that the trace lacks."""

    kind: str
    """`all_to_all_single`, `all_reduce`, ...: named after the operator that launched it, else after the event."""
    start: int
    """The start of its work."""
    end: int
    """The end of its work."""
    lane: str
    """The name of its lane in the timeline: its process group or stream, or the backend on CPU."""
    group: str | None = None
    """The name of its process group."""
    ranks: tuple[int, ...] | None = None
    """The ranks of its process group."""
    launched: int | None = None
    """The start of its launch."""
    layer: int | None = None
    """The layer that the code around its launch named."""
    loose: bool = False
    """True if one rank may finish before another has begun, whatever the kind (`LOOSE_KINDS`)."""

    @property
    def order(self) -> tuple[int, int]:
        """The key by which its rank launched it: the moment of the launch, if known, and the start."""
        return (self.start if self.launched is None else self.launched, self.start)


@dataclass(frozen=True)
class Trace:
    """The profile of one rank."""

    source: str
    """The file, or another name of the origin."""
    rank: int | None
    """None if the profile does not say."""
    world_size: int | None
    """None if the profile does not say."""
    device: CollectiveDevice
    """The device that runs its collectives."""
    collectives: tuple[Collective, ...]
    """The collectives in order of their starts."""
    work: dict[str, list[Segment]] = field(repr=False)
    """Compute by thread or stream: disjoint segments in order."""
    copies: dict[str, list[Segment]] = field(default_factory=dict, repr=False)
    """Copies and fills of GPU memory, likewise."""
    waits: list[Span] = field(default_factory=list, repr=False)
    """The times in which a CPU thread waited for a collective; a union."""
    groups: tuple[tuple[int, ...], ...] | None = ()
    """The ranks of each process group of this rank; None if there may be groups that the profile does not show."""
    graphs: list[Segment] = field(default_factory=list, repr=False)
    """Runs of compiled graphs, each with the name that the profiler gives the graph; in order."""
    schedules: tuple[dict[str, Any], ...] = ()
    """The schedules of the profiled process (`ScheduleReport.to_json`), oldest first."""
    host: str = ""
    """Name of the machine; empty if the profile does not say."""
    notes: tuple[str, ...] = ()
    """Facts that the reader of a report must know to trust it."""

    def lanes(self, *, copies: bool = True) -> list[list[Segment]]:
        """Return the compute of each thread or stream, with `copies` and fills of GPU memory or without."""
        return [*self.work.values(), *(self.copies.values() if copies else ())]

    def compute(self, *, copies: bool = True) -> list[Span]:
        """Return the times in which the rank computes: the union of its lanes; `copies` as in `lanes`."""
        return union((start, end) for lane in self.lanes(copies=copies) for start, end, _ in lane)

    @property
    def span(self) -> Span | None:
        """The first and the last moment of any compute or collective; None if there is none."""
        lanes = [lane for lane in self.lanes() if lane]
        starts = [lane[0][0] for lane in lanes] + [one.start for one in self.collectives]
        ends = [lane[-1][1] for lane in lanes] + [one.end for one in self.collectives]
        return (min(starts), max(ends)) if starts else None


@dataclass(frozen=True)
class StepTimes(JsonRecord):
    """One run of a graph, or of all graphs together."""

    compute_ns: int
    """Time in which anything is computed."""
    communication_ns: int
    """Time in which any collective is in flight."""
    exposed_ns: int
    """Time in which a collective is in flight and nothing is computed."""
    step_ns: int
    """Time from its start to its end."""


@dataclass(frozen=True, kw_only=True)
class EstimateReport(JsonRecord):
    """One scheduled graph: the scheduler's estimate for the order that runs, and the measurement."""

    name: str
    """`forward`, `backward` or `inference`, with a number if there are several; `total` for their sum."""
    collectives: int
    """Launches of one run."""
    profile: str
    """Name of the hardware profile behind the estimate."""
    estimated: StepTimes
    """The scheduler's times of one run."""
    measured: StepTimes | None
    """The mean over runs and ranks; None if the trace does not show this graph's runs."""


@dataclass(frozen=True)
class Hider(JsonRecord):
    """A kernel or operator that ran while a collective was in flight."""

    name: str
    """The profiler's name of it."""
    time_ns: int
    """Time in which both ran."""


@dataclass(frozen=True, kw_only=True)
class MeasuredOverlap(JsonRecord):
    """Communication time, and how much of it was exposed."""

    ALSO_WRITTEN = ("hidden_ns",)

    communication_ns: int
    """Time in flight."""
    exposed_ns: int
    """Time in flight in which the same rank computes nothing."""

    @property
    def hidden_ns(self) -> int:
        """Time in flight during which compute ran."""
        return self.communication_ns - self.exposed_ns

    @property
    def fraction(self) -> float | None:
        """1 - exposed / communication; None without communication."""
        return self.hidden_ns / self.communication_ns if self.communication_ns else None

    def to_json(self) -> dict[str, Any]:
        """Return all fields, and the values that follow from them, for `json.dumps`."""
        return {**super().to_json(), "overlap": self.fraction}


@dataclass(frozen=True, kw_only=True)
class CollectiveReport(MeasuredOverlap):
    """One collective of one rank; `communication_ns` is its time in flight."""

    index: int
    """Its place among the rank's collectives, by start."""
    kind: str
    """The kind, as in `Collective`."""
    group: str | None
    """Name of its process group; None: the trace does not say."""
    layer: int | None
    """Its layer; None if that is not known."""
    start_ns: int
    """The start, since the first moment of the report."""
    peer_wait_ns: int | None
    """Time for which it waited for the last rank to join, an upper bound; None if not known."""
    hidden_by: tuple[Hider, ...]
    """Longest first. Concurrent kernels of several streams each count."""


@dataclass(frozen=True, kw_only=True)
class PartReport(MeasuredOverlap):
    """The collectives of one kind or one layer of a rank, together."""

    name: str
    """The kind, or the number of the layer."""
    count: int
    """Collectives in it."""
    hidden_by: tuple[Hider, ...]
    """The kernels and operators that ran meanwhile, longest first."""


@dataclass(frozen=True, kw_only=True)
class RankReport(MeasuredOverlap):
    """All collectives of one rank."""

    rank: int
    """Its number."""
    compute_ns: int
    """Time during which any compute ran."""
    waiting_ns: int | None
    """Exposed time that a thread spent in a wait; None on GPU, where the host does not wait.

    The rest of the exposed time is Python, or kernels without an event.
    """
    peer_wait_ns: int | None
    """Time in which all collectives in flight waited for a rank to join; None if not known."""
    hidden_by: tuple[Hider, ...]
    """The kernels and operators that ran beside its collectives, longest first."""
    kinds: tuple[PartReport, ...]
    """The collectives by kind."""
    layers: tuple[PartReport, ...]
    """The collectives by layer, in order, those of unknown layer last, as `?`; empty if no layer is known."""
    collectives: tuple[CollectiveReport, ...]
    """The collectives, by start."""


@dataclass(frozen=True)
class OverlapReport(JsonRecord):
    """Exposed communication of one or several ranks; in JSON, times in nanoseconds, `overlap` as a fraction."""

    ALSO_WRITTEN, NOT_WRITTEN = ("total",), ("traces",)

    ranks: tuple[RankReport, ...]
    """The reports in order of rank."""
    device: CollectiveDevice
    """The device of all traces."""
    world_size: int | None
    """None if the traces do not say."""
    peer_wait_subtracted: bool
    """True if collectives count from the moment at which the last rank joined."""
    notes: tuple[str, ...]
    """Facts that the reader must know to trust the report."""
    estimates: tuple[EstimateReport, ...]
    """Estimate and measurement of each scheduled graph, and their sum; empty without schedules."""
    traces: tuple[Trace, ...] = field(repr=False, compare=False)
    """The traces in order of rank, for drawings."""

    @property
    def total(self) -> MeasuredOverlap:
        """The sums over the ranks."""
        return MeasuredOverlap(
            communication_ns=sum(rank.communication_ns for rank in self.ranks),
            exposed_ns=sum(rank.exposed_ns for rank in self.ranks),
        )
