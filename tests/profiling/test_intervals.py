# SPDX-License-Identifier: Apache-2.0
"""Interval unions and lanes against an oracle that looks at every nanosecond."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from farskip_compile.measure.profiling.intervals import Coverage, difference, intersection, total, union
from farskip_compile.measure.profiling.lanes import in_order, innermost, segments

END = 60
intervals = st.lists(
    st.tuples(st.integers(0, END), st.integers(0, END)).map(lambda pair: tuple(sorted(pair))), max_size=12
)


def moments(spans):
    return {moment for start, end in spans for moment in range(start, end)}


@given(intervals, intervals)
def test_unions_against_every_nanosecond(left, right):
    a, b = union(left), union(right)
    for spans in (a, b, intersection(a, b), difference(a, b)):
        assert all(start < end for start, end in spans)
        assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert all(before[1] < after[0] for before, after in pairwise(a)), "neighbours are merged"
    assert moments(a) == moments(left)
    assert total(a) == len(moments(left))
    assert moments(intersection(a, b)) == moments(left) & moments(right)
    assert moments(difference(a, b)) == moments(left) - moments(right)


@given(intervals, st.lists(st.tuples(st.integers(-5, END + 5), st.integers(-5, END + 5)), min_size=1, max_size=8))
def test_coverage_of_stretches(spans, stretches):
    coverage = Coverage(union(spans))
    for start, end in stretches:
        assert coverage.within(start, end) == len(moments(spans) & set(range(start, end)))


@given(intervals)
def test_each_moment_belongs_to_the_open_event_that_started_last(spans):
    events = in_order([(start, end, str(number)) for number, (start, end) in enumerate(spans)])
    found = {moment: index for start, end, index in innermost(events) for moment in range(start, end)}
    assert set(found) == moments(spans)
    assert total((start, end) for start, end, _ in innermost(events)) == len(found), "no moment twice"
    for moment, index in found.items():
        candidates = [i for i, (start, end, _) in enumerate(events) if start <= moment < end]
        assert index == max(candidates)
    assert [(start, end) for start, end, _ in segments(events)] == [(start, end) for start, end, _ in innermost(events)]
