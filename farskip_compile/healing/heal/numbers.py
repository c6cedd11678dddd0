# SPDX-License-Identifier: Apache-2.0
"""Figures in words: times, bytes, counts.

Contract: text of a number, and nothing else.
"""

from __future__ import annotations


def duration(seconds: float) -> str:
    """`3.2 h`, `12 min`, `45 s`, `0.3 s`."""
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:.1f} h"
    if seconds >= 120:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def size(count: float) -> str:
    """Bytes: `12.3 GB`, `4.5 MB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def count(number: float) -> str:
    """`1.3 B`, `340 M`, `12 k`, `345`."""
    for least, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= least:
            value = number / least
            return f"{value:.3g} {unit}"
    return f"{number:.0f}"
