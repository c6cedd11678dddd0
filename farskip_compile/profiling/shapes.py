"""Turns intervals into as few shapes as a picture has room for.

In:    intervals, and the length below which one is too short to be seen: a sliver.
Out:   blocks of intervals, and pieces of one interval, each at least about a sliver long.
Never: changes proportions: where intervals are drawn together, their times add up.

A trace may hold a million intervals for a thousand pixels. Everything is linear in the number of intervals, or
logarithmic for each question.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from farskip_compile.profiling.intervals import Coverage, Span


@dataclass(frozen=True, slots=True)
class Block:
    """Neighbouring intervals, drawn as one."""

    start: int
    end: int
    busy: int
    """How much of it the intervals fill."""
    first: int
    """Index of the first interval."""
    count: int

    @property
    def indices(self) -> range:
        """Indices of all its intervals."""
        return range(self.first, self.first + self.count)


def blocks(spans: Sequence[Span], sliver: float) -> Iterator[Block]:
    """Intervals of at least `sliver` one by one, shorter ones in blocks of at most three slivers.

    Args:
        spans: in order of their starts. Where they overlap, the first has the time.
        sliver: in nanoseconds.
    """
    pending: Block | None = None
    for index, (start, end) in enumerate(spans):
        alone = end - start >= sliver
        if pending is not None:
            if not alone and end - pending.start <= 3 * sliver:
                fresh = max(0, end - max(start, pending.end))
                end = max(end, pending.end)
                pending = Block(pending.start, end, pending.busy + fresh, pending.first, pending.count + 1)
                continue
            yield pending
            pending = None
        block = Block(start, end, end - start, index, 1)
        if alone:
            yield block
        else:
            pending = block
    if pending is not None:
        yield pending


class Pieces:
    """A union, such as the exposed time of a rank, to be intersected with single intervals."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self._spans = spans
        self._starts = [start for start, _ in spans]
        self._ends = [end for _, end in spans]
        self._coverage = Coverage(spans)

    def of(self, start: int, end: int, sliver: float) -> Iterator[tuple[int, int, bool]]:
        """Parts of one interval, in order: start, end, and whether the union covers it.

        As they are if there is room; else each sliver is divided by its share.
        """
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        if last - first <= max(1.0, (end - start) / sliver):
            yield from self._exact(start, end, first, last)
            return
        step = max(1, int(sliver))
        for left in range(start, end, step):
            right = min(left + step, end)
            middle = left + self._coverage.within(left, right)
            if middle > left:
                yield left, middle, True
            if right > middle:
                yield middle, right, False

    def _exact(self, start: int, end: int, first: int, last: int) -> Iterator[tuple[int, int, bool]]:
        for left, right in self._spans[first:last]:
            if left > start:
                yield start, left, False
            yield max(left, start), min(right, end), True
            start = min(right, end)
        if start < end:
            yield start, end, False
