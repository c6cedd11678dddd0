# SPDX-License-Identifier: Apache-2.0
"""Sets of terms as a few intervals, so that a table of n rows costs O(n) and not O(n^2).

Terms are numbered along the residual stream, so what a sub-block reads is "all up to here, except one or two":
a handful of half-open intervals, whatever the depth of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class TermSet:
    """An immutable set of term indices, kept as sorted, disjoint, non-adjacent half-open intervals."""

    intervals: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, indices: Iterable[int]) -> TermSet:
        """The set of the given indices."""
        return cls.from_intervals((i, i + 1) for i in indices)

    @classmethod
    def from_intervals(cls, intervals: Iterable[tuple[int, int]]) -> TermSet:
        """The union of half-open intervals in any order."""
        merged: list[tuple[int, int]] = []
        for low, high in sorted(intervals):
            if low >= high:
                continue
            if merged and low <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
            else:
                merged.append((low, high))
        return cls(tuple(merged))

    def __or__(self, other: TermSet) -> TermSet:
        return TermSet.from_intervals([*self.intervals, *other.intervals])

    def __sub__(self, other: TermSet) -> TermSet:
        if not other.intervals or not self.intervals:
            return self
        result: list[tuple[int, int]] = []
        cuts, first = other.intervals, 0
        for low, high in self.intervals:  # side by side: a manifest of others may have many intervals
            while first < len(cuts) and cuts[first][1] <= low:
                first += 1
            index = first
            while index < len(cuts) and cuts[index][0] < high:
                if low < cuts[index][0]:
                    result.append((low, cuts[index][0]))
                low = max(low, cuts[index][1])
                index += 1
            if low < high:
                result.append((low, high))
        return TermSet(tuple(result))

    def __and__(self, other: TermSet) -> TermSet:
        return self - (self - other)

    def __contains__(self, index: int) -> bool:
        return any(low <= index < high for low, high in self.intervals)

    def __iter__(self) -> Iterator[int]:
        for low, high in self.intervals:
            yield from range(low, high)

    def __len__(self) -> int:
        return sum(high - low for low, high in self.intervals)

    def __bool__(self) -> bool:
        return bool(self.intervals)

    @property
    def newest(self) -> int:
        """The largest index, -1 if empty."""
        return self.intervals[-1][1] - 1 if self.intervals else -1
