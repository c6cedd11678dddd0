"""What the overlap report needs from one rank's profile: collectives, compute and waits, as intervals.

Contract: all times are whole nanoseconds since the epoch (as the profiler's clock has it). A trace is of one rank.
Nothing is judged here: `read.py` fills a `Trace`, `measure.py` asks it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from farskip_compile.profiling.intervals import Span, union
from farskip_compile.profiling.lanes import Segment


class Device(StrEnum):
    """Where the collectives of a trace run, and with them what counts as compute."""

    CPU = "cpu"
    GPU = "gpu"


@dataclass(frozen=True, slots=True)
class Collective:
    """One collective of one rank, from the start of its work to its end."""

    kind: str
    """`all_to_all_single`, `all_reduce`, ...: named after the operator that launched it, or else after the event."""
    start: int
    end: int
    lane: str
    """What it is drawn with in the timeline: its process group or stream, or the backend on CPU."""
    group: str | None = None
    """Name of its process group; None if the trace does not say."""
    ranks: tuple[int, ...] | None = None
    """Ranks of its process group; None if the trace does not say."""
    launched: int | None = None
    """When its launch began; None if the launch is not known."""
    layer: int | None = None
    """The layer that the code around its launch named; None if none is known."""


@dataclass(frozen=True)
class Trace:
    """The profile of one rank."""

    source: str
    """The file, or whatever else it was read from."""
    rank: int | None
    """None if the profile does not say."""
    world_size: int | None
    device: Device
    collectives: tuple[Collective, ...]
    """In order of their starts."""
    work: dict[str, list[Segment]] = field(repr=False)
    """Compute by thread or stream: disjoint segments in order."""
    copies: dict[str, list[Segment]] = field(default_factory=dict, repr=False)
    """Copies and fills of GPU memory, likewise."""
    waits: list[Span] = field(default_factory=list, repr=False)
    """When a CPU thread waited for a collective; a union."""
    groups: tuple[tuple[int, ...], ...] = ()
    """The ranks of each process group that this rank belongs to; empty if the profile does not say."""
    graphs: list[Segment] = field(default_factory=list, repr=False)
    """Runs of compiled graphs, each with the name that the profiler gives the graph; in order."""
    schedules: tuple[dict[str, Any], ...] = ()
    """What the scheduler announced in the process that was profiled (`ScheduleReport.to_json`), oldest first."""
    host: str = ""
    notes: tuple[str, ...] = ()
    """What the reader of a report must know to trust it."""

    def lanes(self, *, copies: bool = True) -> list[list[Segment]]:
        """What counts as compute, by thread or stream."""
        return [*self.work.values(), *(self.copies.values() if copies else ())]

    def compute(self, *, copies: bool = True) -> list[Span]:
        """When the rank computes: a union over its threads or streams."""
        return union((start, end) for lane in self.lanes(copies=copies) for start, end, _ in lane)

    @property
    def span(self) -> Span | None:
        """From the first to the last moment of any compute or collective; None if there is none."""
        lanes = [lane for lane in self.lanes() if lane]
        starts = [lane[0][0] for lane in lanes] + [one.start for one in self.collectives]
        ends = [lane[-1][1] for lane in lanes] + [one.end for one in self.collectives]
        return (min(starts), max(ends)) if starts else None
