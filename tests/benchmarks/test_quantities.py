# SPDX-License-Identifier: Apache-2.0
"""Rates and delays as text."""

from __future__ import annotations

import pytest
from harness import QuantityError, format_rate, parse_delay, parse_rate
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("400mbit", 400_000_000),
        (" 2.5 Gbit/s ", 2_500_000_000),
        ("10GBIT", 10_000_000_000),
        ("100000kbit", 100_000_000),
        ("100000000bit", 100_000_000),
    ],
)
def test_rates(text, rate):
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text", ["", "400", "400mbps", "-1gbit", "mbit", "1e9bit", "1 gibit", "\u0664\u0660\u0660mbit"]
)
def test_what_is_no_rate(text):
    with pytest.raises(QuantityError, match="is not a rate"):
        parse_rate(text)


@pytest.mark.parametrize("text", ["99.999mbit", "10.001gbit", "0mbit"])
def test_rates_out_of_range(text):
    with pytest.raises(QuantityError, match="100 Mbit/s to 10 Gbit/s"):
        parse_rate(text)


@given(st.integers(1000, 100_000), st.integers(0, 3))
def test_a_rate_is_read_as_it_is_written(digits, point):
    """Four digits survive; what is written without rounding is read back exactly."""
    rate = digits // 10**point * 10**6
    if 100 * 10**6 <= rate <= 10**10 and format_rate(rate).count("e") == 0:
        assert parse_rate(format_rate(rate)) == pytest.approx(rate, rel=5e-4)


def test_delays():
    assert parse_delay("500us") == pytest.approx(500e-6)
    assert parse_delay("1.5 ms") == pytest.approx(1.5e-3)
    for text in ("1", "0ms", "2s", "ms", "-1ms"):
        with pytest.raises(QuantityError):
            parse_delay(text)
