"""Sets of time intervals: unions, intersections, and how much of a stretch a union covers.

Contract: an interval is `(start, end)` in whole nanoseconds, half open, `start <= end`. A *union* is a list of
intervals that is sorted, with a gap between neighbours and nothing empty: what `union` gives and what every other
function here takes. All are linear in the number of intervals (after sorting); integers, so nothing is rounded.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate

Span = tuple[int, int]


def union(spans: Iterable[Span]) -> list[Span]:
    """The union of `spans`, which may overlap and come in any order."""
    merged: list[Span] = []
    last_start, last_end = 0, 0
    is_open = False
    for start, end in sorted(spans):
        if start >= end:
            continue
        if is_open and start <= last_end:
            last_end = max(last_end, end)
            continue
        if is_open:
            merged.append((last_start, last_end))
        last_start, last_end, is_open = start, end, True
    if is_open:
        merged.append((last_start, last_end))
    return merged


def total(spans: Iterable[Span]) -> int:
    """Length of a union, in nanoseconds."""
    return sum(end - start for start, end in spans)


def intersection(left: Sequence[Span], right: Sequence[Span]) -> list[Span]:
    """What two unions have in common."""
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
    """What of the union `left` is not in the union `right`."""
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
    """A union, prepared for many questions of the form: how much of this stretch does it cover?

    Each answer costs O(log n). Prepared once, because overlapping collectives ask about the same stretch.
    """

    def __init__(self, spans: Sequence[Span]) -> None:
        self._starts = [start for start, _ in spans]
        self._ends = [end for _, end in spans]
        self._before = [0, *accumulate(end - start for start, end in spans)]

    def within(self, start: int, end: int) -> int:
        """Covered nanoseconds between `start` and `end`."""
        return self._until(end) - self._until(start) if start < end else 0

    def _until(self, time: int) -> int:
        index = bisect_right(self._starts, time)
        if index == 0:
            return 0
        return self._before[index] - max(0, self._ends[index - 1] - time)
