"""Numbers and names in sentences.

Contract: text only.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def amount(number: int, noun: str) -> str:
    """`1 collective`, `2 collectives`; for nouns whose plural ends in s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "", *, always: str = "", prefix: str = "") -> str:
    """A question for a known name that is close to `name`, else `otherwise`; then what is `always` said. `prefix` is
    shown before the known name."""
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {prefix + close[0]!r}?" if close else otherwise
    return " ".join(part for part in (hint, always) if part)
