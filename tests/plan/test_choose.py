# SPDX-License-Identifier: Apache-2.0
"""The choice of rows, where what each set frees is known."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farskip_compile.healing.plan.choose import Exposure, choose


def exposure(exposed: float) -> Exposure:
    return Exposure(10.0, exposed, 20.0)


def best(damage, frees, share):
    """The least damage of all sets that free so much."""
    sets = (rows for count in range(len(damage) + 1) for rows in itertools.combinations(damage, count))
    return min(sum(damage[row] for row in rows) for rows in sets if frees(rows) >= share * frees(tuple(damage)) - 1e-12)


def test_rows_that_add_up_are_taken_by_what_they_free_for_their_damage():
    damage = {"a": 1.0, "b": 0.5, "c": 3.0, "d": 0.0}
    frees = {"a": 4.0, "b": 1.0, "c": 3.0, "d": 1.0}
    front = choose(damage, lambda rows: exposure(9.0 - sum(frees[row] for row in rows)))
    rows = [point.rows for point in front.points]
    assert rows == [("d",), ("a", "d"), ("a", "b", "d"), ("a", "c", "d"), ("a", "b", "c", "d")]
    assert [round(front.freed(point), 3) for point in front.points] == [0.0, 0.5, 0.625, 0.875, 1.0]


def test_a_share_and_a_budget():
    damage = {"a": 1.0, "b": 0.5, "c": 3.0}
    frees = {"a": 4.0, "b": 1.0, "c": 3.0}
    front = choose(damage, lambda rows: exposure(9.0 - sum(frees[row] for row in rows)))
    assert front.points[0].rows == ()
    assert front.for_share(0.0).rows == ()
    assert front.for_share(0.6).rows == ("a", "b")
    assert front.for_share(1.0).rows == ("a", "b", "c")
    assert front.for_budget(0.0).rows == ()
    assert front.for_budget(1.2).rows == ("a",)
    assert front.for_budget(99.0).rows == ("a", "b", "c")
    assert front.whole.rows == ("a", "b", "c")


def test_rows_that_free_only_together_are_found_from_the_other_end():
    def estimate(rows):
        return exposure(9.0 - 5.0 * ({"a", "b"} <= set(rows)) - 1.0 * ("c" in rows))

    front = choose({"a": 1.0, "b": 1.0, "c": 9.0}, estimate)
    assert front.for_share(0.8).rows == ("a", "b")


def test_where_nothing_can_be_freed():
    front = choose({"a": 1.0}, lambda rows: exposure(3.0))
    assert [point.rows for point in front.points] == [()]
    assert front.for_share(1.0).rows == ()
    assert front.freed(front.whole) == 1.0


@settings(max_examples=60, deadline=None)
@given(
    damage=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=7),
    parts=st.lists(st.sets(st.integers(0, 9), max_size=4), min_size=7, max_size=7),
)
def test_near_to_the_best_set_where_rows_cover_the_same_collectives(damage, parts):
    """What a set frees is the union of what its rows do: each collective once."""
    rows = {f"row{place}": one for place, one in enumerate(damage)}
    covers = {f"row{place}": parts[place] for place in range(len(damage))}
    asked = []

    def estimate(chosen):
        asked.append(chosen)
        return exposure(10.0 - len(set().union(*(covers[row] for row in chosen))))

    front = choose(rows, estimate)
    assert len(asked) == len(set(asked))  # none is estimated twice
    damages = [point.damage for point in front.points]
    assert damages == sorted(damages)
    exposed = [point.exposure.exposed for point in front.points]
    assert exposed == sorted(exposed, reverse=True)
    assert len(set(exposed)) == len(exposed)
    for point in front.points:
        assert point.damage == pytest.approx(sum(rows[row] for row in point.rows))
        assert point.exposure == estimate(point.rows)
    for share in (0.5, 0.8, 1.0):
        chosen = front.for_share(share)
        assert front.freed(chosen) >= share - 1e-12
        least = best(rows, lambda one: len(set().union(*(covers[row] for row in one))), share)
        assert chosen.damage <= 3.0 * least + 1e-9  # greedily, within ln(10) of the best and some
