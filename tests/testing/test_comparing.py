# SPDX-License-Identifier: Apache-2.0
"""The measure behind tolerances."""

from __future__ import annotations

import pytest
import torch

from farskip_compile.testing import relative_difference
from farskip_compile.testing.comparing import differences, scale_of_gradients

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("left", "right", "by"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.0], [1.0, 4.0], 0.5),
        ([0.0, -8.0], [0.0, 2.0], 1.25),
        ([0.0], [-0.0], 0.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([], [], 0.0),
        ([INF, 1.0], [INF, 2.0], 0.5),
        ([NAN, 1.0], [NAN, 1.0], 0.0),
        ([INF, 1.0], [-INF, 1.0], INF),
        ([INF, 1.0], [1.0, 1.0], INF),
        ([NAN, 1.0], [1.0, 1.0], INF),
        ([1, 2], [1, 3], 1 / 3),
        ([True], [False], 1.0),
        ([1j], [-1j], 2.0),
        ([1.0], [1.0, 1.0], INF),
    ],
)
def test_relative_to_the_largest_entry(left, right, by):
    assert relative_difference(torch.tensor(left), torch.tensor(right)) == pytest.approx(by)


def test_of_low_precision_nothing_is_lost():
    one = torch.tensor([60000.0, 1.0], dtype=torch.float16)
    assert relative_difference(one, -one) == 2.0
    assert relative_difference(one.to(torch.bfloat16), one) == pytest.approx(96 / 60000)
    assert relative_difference(one.to(torch.float8_e5m2), one.to(torch.float8_e5m2)) == 0.0


def test_values_are_told_by_name_and_sorted():
    found = {"same": torch.ones(2), "close": torch.tensor([1.0, 1.1]), "far": torch.tensor([1.0, 5.0]), "new": 1}
    wanted = {"same": torch.ones(2), "close": torch.ones(2), "far": torch.ones(2)}
    assert [one.name for one in differences(found, wanted)] == ["new", "far", "close"]
    assert [one.name for one in differences(found, wanted, 0.2)] == ["new", "far"]
    assert "at (1,) 5.0 against 1.0" in str(differences(found, wanted, 0.2)[1])


def test_a_gradient_that_cancels_out_is_measured_by_the_others():
    """Found by fuzzing: keys and queries of two equal tokens have no gradient, but 1e-16 of rounding."""
    found = {"weight": torch.tensor([1.0, 30.0]), "key": torch.tensor([1e-16]), "lost": torch.tensor([0.0])}
    wanted = {"weight": torch.tensor([1.0, 30.0]), "key": torch.tensor([-4e-16]), "lost": torch.tensor([1e-9])}
    scale = scale_of_gradients([*found.values(), *wanted.values(), torch.tensor([INF, NAN]), torch.tensor([])])
    assert scale == pytest.approx(0.03)
    assert [one.name for one in differences(found, wanted, 1e-12)] == ["key", "lost"]
    assert [one.name for one in differences(found, wanted, 1e-12, scale)] == ["lost"]
    assert [one.name for one in differences(found, wanted, None, scale)] == ["lost", "key"]


def test_large_integers_are_compared_as_integers():
    big = torch.tensor([2**60])
    assert differences({"n": big}, {"n": big}) == []
    assert len(differences({"n": big}, {"n": big + 1})) == 1


def test_the_same_numbers_of_another_type_differ():
    (one,) = differences({"a": torch.ones(2)}, {"a": torch.ones(2, dtype=torch.float64)}, tolerance=1.0)
    assert one.by == float("inf")
    assert "float32 [2] against float64 [2]" in one.detail
