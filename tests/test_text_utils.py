# SPDX-License-Identifier: Apache-2.0
"""Questions for names that are close to a known one, and what is said otherwise."""

from __future__ import annotations

import pytest

from farskip_compile.text_utils import amount, did_you_mean

KNOWN = ("prefill", "decode", "train")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("prefil", {}, "did you mean 'prefill'?"),
        ("prefil", {"prefix": "phase."}, "did you mean 'phase.prefill'?"),
        ("prefil", {"always": "one of three"}, "did you mean 'prefill'? one of three"),
        ("prefil", {"otherwise": "one of three"}, "did you mean 'prefill'?"),
        ("xyz", {}, ""),
        ("xyz", {"otherwise": "one of three"}, "one of three"),
        ("xyz", {"always": "one of three"}, "one of three"),
        ("xyz", {"otherwise": "no", "always": "one of three"}, "no one of three"),
    ],
)
def test_question(name: str, options: dict[str, str], said: str) -> None:
    assert did_you_mean(name, KNOWN, **options) == said


def test_amount() -> None:
    assert [amount(number, "rank") for number in (0, 1, 2)] == ["0 ranks", "1 rank", "2 ranks"]
