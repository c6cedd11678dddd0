# SPDX-License-Identifier: Apache-2.0
"""The time of one thread or stream, divided among its events, and the launches of its collectives.

In:    the events of one lane, `(start, end, name)` in nanoseconds, nested or overlapping; the collectives of a trace,
       the operators that launched collectives, and `record_function` ranges that name a layer.
Out:   disjoint segments in order, each with the name of the event that ran; the same collectives with launch, kind and
       layer, if these can be known.
Never: counts a moment twice, or one in which no event is open. Guesses: a kind for which the trace shows more launches
       than collectives, or a collective before its launch, is left as it is.

`innermost` walks the starts in order, with a stack of open events. Any moment belongs to the open event that started
last: in properly nested events the innermost one, so that the time of `aten::addmm` goes to `aten::addmm` and not to
the `aten::linear` around it.

`compute_only`, for CPU threads: an operator is not compute itself, although what it encloses may be, if
1. it lies inside a launch or a wait;
2. something that launches or waits runs inside it, or an operator of its own name (tensor subclasses such as DTensor
   run Python between an outer `aten::mm` and the inner one);
3. it is of a foreign namespace and any operator runs inside it.

On a GPU a kernel carries the correlation id of the runtime call that launched it (`launches.py`). On a CPU only the
order ties a gloo work to its operator: gloo takes works from one queue, so that the n-th `gloo:all_to_all` to start is
the n-th that was launched.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from farskip_compile.measure.profiling.data import Collective
from farskip_compile.measure.profiling.events import EventRole, layer_of, role
from farskip_compile.measure.profiling.intervals import Segment

LaunchPlace = tuple[str, int]
"""Thread and moment of a launch."""


_COMMUNICATES = (EventRole.LAUNCH, EventRole.WAIT)
MOST_NESTED = 256
"""Most operators inside one another. The deepest programs have some thirty; each looks at all around it."""


def in_order(events: Sequence[Segment]) -> list[Segment]:
    """Return events by their starts; of events that start together, the outer one first."""
    return sorted(events, key=lambda event: (event[0], -event[1]))


def innermost(events: Sequence[Segment]) -> Iterator[tuple[int, int, int]]:
    """Yield disjoint stretches `(start, end, index of the event)` of events that are `in_order`."""
    open_events: list[int] = []
    cursor = 0
    for index, (start, _, _) in enumerate(events):
        while open_events:
            top = open_events[-1]
            end = min(events[top][1], start)
            if end > cursor:
                yield cursor, end, top
                cursor = end
            if events[top][1] > start:
                break
            open_events.pop()
        cursor = start
        open_events.append(index)
    while open_events:
        top = open_events.pop()
        if events[top][1] > cursor:
            yield cursor, events[top][1], top
            cursor = events[top][1]


def segments(events: Sequence[Segment]) -> list[Segment]:
    """Return the segments of the kernels of a GPU stream, each of which counts."""
    events = in_order(events)
    return [(start, end, events[index][2]) for start, end, index in innermost(events)]


def compute_only(events: Sequence[Segment]) -> list[Segment]:
    """Return the segments of a CPU thread's operators that are compute; raise a `ValueError` beyond `MOST_NESTED`."""
    events = in_order(events)
    counts = _is_compute(events)
    return [(start, end, events[index][2]) for start, end, index in innermost(events) if counts[index]]


def _is_compute(events: Sequence[Segment]) -> bytearray:
    roles = [role(name) for _, _, name in events]
    counts = bytearray(found in (EventRole.COMPUTE, EventRole.LEAF) for found in roles)
    around: list[int] = []  # the events that enclose the current one
    for index, (start, end, name) in enumerate(events):
        while around and events[around[-1]][1] <= start:
            around.pop()
        holders = [outer for outer in around if events[outer][1] >= end]
        if any(roles[outer] in _COMMUNICATES for outer in holders):
            counts[index] = False
        for outer in holders:
            same = events[outer][2] == name
            if same or roles[index] in _COMMUNICATES or roles[outer] is EventRole.LEAF:
                counts[outer] = False
        if roles[index] is not EventRole.GLUE:
            around.append(index)
            if len(around) > MOST_NESTED:
                raise ValueError(f"operators are nested more than {MOST_NESTED} deep")
    return counts


@dataclass(frozen=True, slots=True)
class C10dLaunch:
    """An operator of c10d that launched a collective."""

    kind: str
    work: str
    """Gloo's name of the work."""
    place: LaunchPlace


class InnermostEvents:
    """An index of the innermost event at each moment of each lane."""

    def __init__(self, lanes: Mapping[str, Sequence[Segment]]) -> None:
        self._starts: dict[str, list[int]] = {}
        self._stretches: dict[str, list[tuple[int, Segment]]] = {}
        for lane, unordered in lanes.items():
            ordered = in_order(unordered)
            found = list(innermost(ordered))
            self._starts[lane] = [start for start, _, _ in found]
            self._stretches[lane] = [(end, ordered[index]) for _, end, index in found]

    def at(self, lane: str, moment: int) -> Segment | None:
        """Return the innermost event at a moment of `lane`; None if no event is open."""
        index = bisect_right(self._starts.get(lane, ()), moment) - 1
        if index < 0:
            return None
        end, event = self._stretches[lane][index]
        return event if moment < end else None


class LayerRanges:
    """An index of the layer at each moment of a thread, by the innermost `record_function` range."""

    def __init__(self, ranges: Mapping[str, Sequence[Segment]]) -> None:
        self._ranges = InnermostEvents(ranges)

    def place(self, collective: Collective, place: LaunchPlace) -> Collective:
        """Return `collective` with the moment of its launch, and the layer that a range around the launch names."""
        around = self._ranges.at(*place)
        return replace(collective, launched=place[1], layer=layer_of(around[2]) if around else None)


def link_by_order(
    collectives: Sequence[Collective], launches: Sequence[C10dLaunch], layers: LayerRanges
) -> list[Collective]:
    """Return CPU collectives, which are in order of their starts, with their launches."""
    works: dict[str, list[int]] = defaultdict(list)
    for index, collective in enumerate(collectives):
        works[collective.kind].append(index)
    launched: dict[str, list[C10dLaunch]] = defaultdict(list)
    for launch in sorted(launches, key=lambda launch: launch.place[1]):
        launched[launch.work].append(launch)
    linked = list(collectives)
    for work, indices in works.items():
        pairs = list(zip(indices, launched[work], strict=False))
        late = any(collectives[index].start < launch.place[1] for index, launch in pairs)
        if len(launched[work]) != len(indices) or late:
            continue
        for index, launch in pairs:
            linked[index] = replace(layers.place(linked[index], launch.place), kind=launch.kind)
    return linked
