"""Numbers in sentences.

Contract: text only.
"""

from __future__ import annotations


def amount(number: int, noun: str) -> str:
    """`1 collective`, `2 collectives`; for nouns whose plural ends in s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
