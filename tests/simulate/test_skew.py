# SPDX-License-Identifier: Apache-2.0
"""The load of the fullest rank."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farskip_compile.errors import ConfigError
from farskip_compile.measure.simulate.rank_model import imbalance, zipf_loads


@pytest.mark.parametrize(
    ("loads", "ranks", "expected"),
    [
        ([1, 1, 1, 1], 2, 1.0),
        ([3, 1, 1, 1], 2, 4 / 3),
        ([3, 1, 1, 1], 4, 2.0),
        ([5, 5], 1, 1.0),
        ([4, 0, 0, 0], 4, 4.0),
    ],
)
def test_by_hand(loads: list[float], ranks: int, expected: float) -> None:
    assert imbalance(loads, ranks) == pytest.approx(expected)


def test_experts_that_can_not_be_shared_out() -> None:
    with pytest.raises(ConfigError, match="6 experts can't be divided among 4 ranks"):
        imbalance([1.0] * 6, 4)


@given(st.sampled_from([8, 64, 256]), st.integers(1, 8), st.floats(0, 3))
def test_zipf(experts: int, top_k: int, skew: float) -> None:
    loads = zipf_loads(experts, top_k, skew)
    assert sum(loads) == pytest.approx(top_k)
    assert max(loads) <= 1.0 + 1e-9, "a token chooses an expert at most once"
    assert loads == zipf_loads(experts, top_k, skew), "the same on every rank"
    found = [imbalance(loads, ranks) for ranks in (1, 2, 4, 8)]
    for more, fewer in itertools.pairwise(found):
        assert fewer >= more * (1 - 1e-9), "the fewer experts a rank has, the more they differ"
    assert found[0] == pytest.approx(1.0)


def test_balanced_and_skewed() -> None:
    assert imbalance(zipf_loads(256, 8, 0.0), 8) == pytest.approx(1.0)
    assert imbalance(zipf_loads(256, 8, 1.0), 8) > 1.2
