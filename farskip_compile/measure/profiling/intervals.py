# SPDX-License-Identifier: Apache-2.0
"""Sets of time intervals, and shapes that draw many intervals on few pixels.

Contract: an interval is `(start, end)` in whole nanoseconds, half open, `start <= end`. A *union* is a sorted list of
intervals with gaps between neighbours and none empty: the result of `union`, and the argument of every other function.
All functions are linear in the number of intervals (after sorting) or logarithmic per question, and exact. A trace may
hold a million intervals for a thousand pixels: intervals shorter than a *sliver* can't be seen, and are drawn together
with their neighbours so that the sum of their times is right.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

Span = tuple[int, int]
Segment = tuple[int, int, str]
"""Start and end in nanoseconds, and a name."""


def union(spans: Iterable[Span]) -> list[Span]:
    """Return the union of `spans`, which may overlap and come in any order."""
    merged: list[Span] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def total(spans: Iterable[Span]) -> int:
    """Return the length of a union, in nanoseconds."""
    return sum(end - start for start, end in spans)


def intersection(left: Sequence[Span], right: Sequence[Span]) -> list[Span]:
    """Return the intersection of two unions."""
    common: list[Span] = []
    i = j = 0
    while i < len(left) and j < len(right):
        start, end = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if start < end:
            common.append((start, end))
        if left[i][1] <= right[j][1]:
            i += 1
        else:
            j += 1
    return common


def difference(left: Sequence[Span], right: Sequence[Span]) -> list[Span]:
    """Return the part of the union `left` outside the union `right`."""
    rest: list[Span] = []
    j = 0
    for start, end in left:
        while j < len(right) and right[j][1] <= start:
            j += 1
        k = j
        while k < len(right) and right[k][0] < end:
            if start < right[k][0]:
                rest.append((start, right[k][0]))
            start = max(start, right[k][1])
            k += 1
        if start < end:
            rest.append((start, end))
    return rest


class Coverage:
    """A union prepared for questions about the time that it covers in a stretch, in O(log n) each."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self._starts = [start for start, _ in spans]
        self._ends = [end for _, end in spans]
        self._before = [0, *accumulate(end - start for start, end in spans)]

    def within(self, start: int, end: int) -> int:
        """Return the covered nanoseconds between `start` and `end`."""
        return self._until(end) - self._until(start) if start < end else 0

    def split(self, start: int, end: int, sliver: float) -> Iterator[tuple[int, int, bool]]:
        """Parts of one interval, in order: start, end, and whether the union covers it.

        As they are if there is room; else each sliver is divided by its share.
        """
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        if last - first > max(1.0, (end - start) / sliver):
            step = max(1, int(sliver))
            for left in range(start, end, step):
                right = min(left + step, end)
                middle = left + self.within(left, right)
                if middle > left:
                    yield left, middle, True
                if right > middle:
                    yield middle, right, False
            return
        for left, right in zip(self._starts[first:last], self._ends[first:last], strict=True):
            if left > start:
                yield start, left, False
            yield max(left, start), min(right, end), True
            start = min(right, end)
        if start < end:
            yield start, end, False

    def _until(self, time: int) -> int:
        index = bisect_right(self._starts, time)
        if index == 0:
            return 0
        return self._before[index] - max(0, self._ends[index - 1] - time)


@dataclass(frozen=True, slots=True)
class IntervalBlock:
    """Neighbouring intervals, drawn as one shape."""

    start: int
    end: int
    busy: int
    """Nanoseconds that the intervals fill."""
    first: int
    """Index of the first interval."""
    count: int

    @property
    def indices(self) -> range:
        """The indices of the intervals."""
        return range(self.first, self.first + self.count)


def blocks(spans: Sequence[Span], sliver: float) -> Iterator[IntervalBlock]:
    """Yield intervals of at least `sliver` one by one, and shorter ones in blocks of at most three slivers.

    Args:
        spans: in order of their starts. Of intervals that overlap, the first one has the time.
        sliver: in nanoseconds.
    """
    pending: IntervalBlock | None = None
    for index, (start, end) in enumerate(spans):
        alone = end - start >= sliver
        if pending is not None and not alone and end - pending.start <= 3 * sliver:
            fresh = max(0, end - max(start, pending.end))
            end = max(end, pending.end)
            pending = IntervalBlock(pending.start, end, pending.busy + fresh, pending.first, pending.count + 1)
            continue
        if pending is not None:
            yield pending
        pending = IntervalBlock(start, end, end - start, index, 1)
        if alone:
            yield pending
            pending = None
    if pending is not None:
        yield pending
