# SPDX-License-Identifier: Apache-2.0
"""Shapes of a timeline: few enough, and true to proportions."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from farskip_compile.measure.profiling.intervals import Coverage, blocks, intersection, total, union

spans = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 30)), max_size=40).map(
    lambda steps: [(end - length, end) for end, length in _ends(steps)]
)
slivers = st.floats(0.5, 40)


def _ends(steps):
    now = 0
    for gap, length in steps:
        now += gap + length
        yield now, length


@given(spans, slivers)
def test_blocks_keep_time_and_order(found, sliver):
    made = list(blocks(found, sliver))
    assert [index for block in made for index in block.indices] == list(range(len(found)))
    assert sum(block.busy for block in made) == total(found)
    for block in made:
        assert block.start + block.busy <= block.end
        assert block.count == 1 or block.end - block.start <= 3 * sliver
        assert all(block.count == 1 or found[i][1] - found[i][0] < sliver for i in block.indices)
    assert all(before.end <= after.start for before, after in pairwise(made))
    if found:
        assert len(made) <= 2 + 2 * (found[-1][1] - found[0][0]) / min(sliver, 3 * sliver)


@given(spans, st.integers(0, 300), st.integers(1, 200), slivers)
def test_pieces_keep_proportions(found, start, length, sliver):
    end = start + length
    made = list(Coverage(union(found)).split(start, end, sliver))
    assert made[0][0] == start
    assert made[-1][1] == end
    assert all(before[1] == after[0] for before, after in pairwise(made))
    assert all(left < right for left, right, _ in made)
    covered = [(left, right) for left, right, is_covered in made if is_covered]
    assert total(covered) == total(intersection(union(found), [(start, end)]))
    assert len(made) <= 3 + 2 * length / max(1, int(sliver))
