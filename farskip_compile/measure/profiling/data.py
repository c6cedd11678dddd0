# SPDX-License-Identifier: Apache-2.0
"""What a profile holds, and what is reported about it, as data.

Contract: nothing is judged here: `read.py` fills a `Trace`, `measure.py` and `estimated.py` make the reports. Times are
whole nanoseconds; those of a trace count from the epoch (the profiler's clock). `exposed_ns` is the time during which a
collective is in flight and no compute of the same rank runs; it is measured on unions of intervals, so that two
collectives or two kernels at once count once; therefore the parts of a table may add up to more than the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from farskip_compile.base.json_files import JsonRecord
from farskip_compile.measure.profiling.intervals import Segment, Span, union


class CollectiveDevice(StrEnum):
    """Where the collectives of a trace run, and with them what counts as compute."""

    CPU = "cpu"
    """Gloo, on threads of the host."""
    GPU = "gpu"
    """NCCL, RCCL and others, on streams of a CUDA or HIP device."""


@dataclass(frozen=True, slots=True)
class Collective:
    """One collective of one rank, from the start of its work to its end. None: the trace does not say."""

    kind: str
    """`all_to_all_single`, `all_reduce`, ...: named after the operator that launched it, or else after the event."""
    start: int
    """When its work began."""
    end: int
    """When its work was done."""
    lane: str
    """What it is drawn with in the timeline: its process group or stream, or the backend on CPU."""
    group: str | None = None
    """Name of its process group."""
    ranks: tuple[int, ...] | None = None
    """Of its process group."""
    launched: int | None = None
    """When its launch began."""
    layer: int | None = None
    """The layer that the code around its launch named."""
    loose: bool = False
    """Whether a rank may be done with it before another has begun, whatever the kind (`LOOSE_KINDS`)."""

    @property
    def order(self) -> tuple[int, int]:
        """By this its rank launched its collectives: moment of the launch, if known, and start."""
        return (self.start if self.launched is None else self.launched, self.start)


@dataclass(frozen=True)
class Trace:
    """The profile of one rank."""

    source: str
    """The file, or whatever else it was read from."""
    rank: int | None
    """None if the profile does not say."""
    world_size: int | None
    """None if the profile does not say."""
    device: CollectiveDevice
    """Where its collectives run."""
    collectives: tuple[Collective, ...]
    """In order of their starts."""
    work: dict[str, list[Segment]] = field(repr=False)
    """Compute by thread or stream: disjoint segments in order."""
    copies: dict[str, list[Segment]] = field(default_factory=dict, repr=False)
    """Copies and fills of GPU memory, likewise."""
    waits: list[Span] = field(default_factory=list, repr=False)
    """When a CPU thread waited for a collective; a union."""
    groups: tuple[tuple[int, ...], ...] | None = ()
    """The ranks of each process group that this rank belongs to; None if there may be some that the profile does not
    show."""
    graphs: list[Segment] = field(default_factory=list, repr=False)
    """Runs of compiled graphs, each with the name that the profiler gives the graph; in order."""
    schedules: tuple[dict[str, Any], ...] = ()
    """What the scheduler announced in the process that was profiled (`ScheduleReport.to_json`), oldest first."""
    host: str = ""
    """Name of the machine; empty if the profile does not say."""
    notes: tuple[str, ...] = ()
    """What the reader of a report must know to trust it."""

    def lanes(self, *, copies: bool = True) -> list[list[Segment]]:
        """What counts as compute, by thread or stream; `copies` and fills of GPU memory, too, unless they are not
        to."""
        return [*self.work.values(), *(self.copies.values() if copies else ())]

    def compute(self, *, copies: bool = True) -> list[Span]:
        """When the rank computes: a union over its threads or streams; `copies` as in `lanes`."""
        return union((start, end) for lane in self.lanes(copies=copies) for start, end, _ in lane)

    @property
    def span(self) -> Span | None:
        """From the first to the last moment of any compute or collective; None if there is none."""
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
    """Of that, time in which nothing is computed."""
    step_ns: int
    """From its start to its end."""


@dataclass(frozen=True, kw_only=True)
class EstimateReport(JsonRecord):
    """One scheduled graph: what the scheduler expected of the order that runs, and what the trace shows."""

    name: str
    """`forward`, `backward` or `inference`, with a number if there are several; `total` for their sum."""
    collectives: int
    """Launches of one run."""
    profile: str
    """Name of the hardware profile behind the estimate."""
    estimated: StepTimes
    """By the scheduler, of one run."""
    measured: StepTimes | None
    """Mean over runs and ranks; None: the trace does not show this graph's runs."""


@dataclass(frozen=True)
class Hider(JsonRecord):
    """A kernel or operator that ran while a collective was in flight."""

    name: str
    """As the profiler calls it."""
    time_ns: int
    """How long both ran."""


@dataclass(frozen=True, kw_only=True)
class MeasuredOverlap(JsonRecord):
    """Communication time, and how much of it was exposed."""

    ALSO_WRITTEN = ("hidden_ns",)

    communication_ns: int
    """Time in flight."""
    exposed_ns: int
    """Of that, time in which the same rank computes nothing."""

    @property
    def hidden_ns(self) -> int:
        """Time in flight during which compute ran."""
        return self.communication_ns - self.exposed_ns

    @property
    def fraction(self) -> float | None:
        """1 - exposed / communication; None without communication."""
        return self.hidden_ns / self.communication_ns if self.communication_ns else None

    def to_json(self) -> dict[str, Any]:
        """Return plain data for `json.dumps`: all fields, and the figures that follow from them."""
        return {**super().to_json(), "overlap": self.fraction}


@dataclass(frozen=True, kw_only=True)
class CollectiveReport(MeasuredOverlap):
    """One collective of one rank. `communication_ns` is how long it was in flight."""

    index: int
    """Its place among the rank's collectives, by start."""
    kind: str
    """As in `Collective`."""
    group: str | None
    """Name of its process group; None: the trace does not say."""
    layer: int | None
    """The layer that it belongs to; None: not known."""
    start_ns: int
    """Since the first moment of the report."""
    peer_wait_ns: int | None
    """How much of its time it waited for the last rank to join; None if that is not known. An upper bound: some
    collectives have work to do before all ranks are there."""
    hidden_by: tuple[Hider, ...]
    """Longest first. Concurrent kernels of several streams each count."""


@dataclass(frozen=True, kw_only=True)
class PartReport(MeasuredOverlap):
    """Some collectives of one rank together: those of a kind, or those of a layer."""

    name: str
    """The kind, or the number of the layer."""
    count: int
    """Collectives in it."""
    hidden_by: tuple[Hider, ...]
    """What ran beside them, longest first."""


@dataclass(frozen=True, kw_only=True)
class RankReport(MeasuredOverlap):
    """All collectives of one rank."""

    rank: int
    """Its number."""
    compute_ns: int
    """Time during which any compute ran."""
    waiting_ns: int | None
    """Exposed time that a thread spent in a wait; the rest of it is Python or kernels without an event. None on GPU,
    where the host does not wait."""
    peer_wait_ns: int | None
    """Time during which all collectives in flight waited for a rank that had not joined; None if not known."""
    hidden_by: tuple[Hider, ...]
    """What ran beside its collectives, longest first."""
    kinds: tuple[PartReport, ...]
    """By kind of collective."""
    layers: tuple[PartReport, ...]
    """By layer, in order; collectives of unknown layer come last, as `?`. Empty if no layer is known."""
    collectives: tuple[CollectiveReport, ...]
    """Each of them, by start."""


@dataclass(frozen=True)
class OverlapReport(JsonRecord):
    """Exposed communication of one or several ranks; in JSON, times in nanoseconds, `overlap` as a fraction."""

    ALSO_WRITTEN, NOT_WRITTEN = ("total",), ("traces",)

    ranks: tuple[RankReport, ...]
    """In order of rank."""
    device: CollectiveDevice
    """Of the traces; all of one kind."""
    world_size: int | None
    """None if the traces do not say."""
    peer_wait_subtracted: bool
    """Whether collectives count from the moment at which the last rank joined."""
    notes: tuple[str, ...]
    """What the reader must know to trust it."""
    estimates: tuple[EstimateReport, ...]
    """Each scheduled graph, and their sum: estimate and measurement. Empty if the traces hold no schedule."""
    traces: tuple[Trace, ...] = field(repr=False, compare=False)
    """What the report was made of, in order of rank; for drawings."""

    @property
    def total(self) -> MeasuredOverlap:
        """Sum over the ranks."""
        return MeasuredOverlap(
            communication_ns=sum(rank.communication_ns for rank in self.ranks),
            exposed_ns=sum(rank.exposed_ns for rank in self.ranks),
        )
