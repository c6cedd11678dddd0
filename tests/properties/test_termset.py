# SPDX-License-Identifier: Apache-2.0
"""`TermSet` behaves as a Python set of integers, and keeps its intervals canonical."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from farskip_compile.passes.residual.termset import TermSet

indices = st.sets(st.integers(0, 12))


@given(indices)
def test_same_members(members):
    terms = TermSet.of(members)
    assert list(terms) == sorted(members)
    assert len(terms) == len(members)
    assert bool(terms) == bool(members)
    assert terms.newest == max(members, default=-1)
    assert all((index in terms) == (index in members) for index in range(-1, 15))


@given(indices, indices)
def test_same_algebra(left, right):
    a, b = TermSet.of(left), TermSet.of(right)
    assert set(a | b) == left | right
    assert set(a & b) == left & right
    assert set(a - b) == left - right
    # equal sets have equal intervals, however they came about: tables are compared by them
    assert a | b == TermSet.of(left | right)
    assert a & b == TermSet.of(left & right)
    assert a - b == TermSet.of(left - right)
    assert (a == b) == (left == right)
    assert hash(a | b) == hash(TermSet.of(left | right))


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=6))
def test_intervals_in_any_order(intervals):
    members = {index for low, high in intervals for index in range(low, high)}
    terms = TermSet.from_intervals(intervals)
    assert set(terms) == members
    ends = [end for interval in terms.intervals for end in interval]
    assert ends == sorted(set(ends))  # disjoint, sorted, not adjacent, none empty


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_a_long_stream_is_one_interval(first, second):
    low, high = sorted((first, second))
    everything = TermSet(((0, 20_000),)) - TermSet(((low, high + 1),))
    assert len(everything.intervals) <= 2
    assert len(everything) == 20_000 - (high + 1 - low)
