"""One thread or stream: nested, overlapping events cut into stretches that each belong to one event.

In:    the events of one lane, `(start, end, name)` in nanoseconds.
Out:   disjoint segments in order, each with the name of what ran.
Never: counts a moment twice, or one in which no event is open.

Algorithm of `innermost`: walk the starts in order, with a stack of open events. Any moment belongs to the open event
that started last. For properly nested events that is the innermost one, so that the time of `aten::addmm` goes to it
and not to the `aten::linear` around it; events that overlap otherwise lose nothing.

Algorithm of `compute_only`, for CPU threads: an operator is not compute by itself, only what it encloses may be, if
1. it lies inside a launch or a wait;
2. something that launches or waits runs inside it, or an operator of its own name (tensor subclasses such as DTensor
   run Python between an outer `aten::mm` and the inner one);
3. it is of a foreign namespace and any operator runs inside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from farskip_compile.profiling.events import Role, role

Segment = tuple[int, int, str]
"""Start and end in nanoseconds, and a name."""

_COMMUNICATES = (Role.LAUNCH, Role.WAIT)


def in_order(events: Sequence[Segment]) -> list[Segment]:
    """By start; of those that start together the outer one first."""
    return sorted(events, key=lambda event: (event[0], -event[1]))


def innermost(events: Sequence[Segment]) -> Iterator[tuple[int, int, int]]:
    """Disjoint stretches `(start, end, index of the event)` of events that are `in_order`."""
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
    """Every event counts: the kernels of a GPU stream."""
    events = in_order(events)
    return [(start, end, events[index][2]) for start, end, index in innermost(events)]


def compute_only(events: Sequence[Segment]) -> list[Segment]:
    """The parts of a CPU thread's operators that are compute."""
    events = in_order(events)
    counts = _is_compute(events)
    return [(start, end, events[index][2]) for start, end, index in innermost(events) if counts[index]]


def _is_compute(events: Sequence[Segment]) -> bytearray:
    roles = [role(name) for _, _, name in events]
    counts = bytearray(found in (Role.COMPUTE, Role.LEAF) for found in roles)
    around: list[int] = []  # the events that enclose the current one
    for index, (start, end, name) in enumerate(events):
        while around and events[around[-1]][1] <= start:
            around.pop()
        holders = [outer for outer in around if events[outer][1] >= end]
        if any(roles[outer] in _COMMUNICATES for outer in holders):
            counts[index] = False
        for outer in holders:
            same = events[outer][2] == name
            if same or roles[index] in _COMMUNICATES or roles[outer] is Role.LEAF:
                counts[outer] = False
        if roles[index] is not Role.GLUE:
            around.append(index)
    return counts
