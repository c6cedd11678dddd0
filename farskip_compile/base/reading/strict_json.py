# SPDX-License-Identifier: Apache-2.0
"""A parser of JSON that refuses ambiguous and oversized documents.

In:    text.
Out:   plain data: no key twice in an object, every number finite, nested to a modest depth.
Never: recursion as deep as the text asks for; a value that another reader of the same text would not see.
"""

from __future__ import annotations

import json
import math
import re
from itertools import accumulate
from typing import Any, NoReturn

MOST_NESTED = 64
MOST_DIGITS = 40
"""Digits of the longest integer: more than those that stand for "no limit" in configurations (31)."""

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)  # an open one goes to the end: none is read twice
_BRACKETS = b"[]{}"
_STEPS = [{91: 1, 123: 1, 93: -1, 125: -1}.get(byte, 0) for byte in range(256)]
_OTHERS = bytes(byte for byte in range(256) if byte not in _BRACKETS)


def parse_json(text: str) -> Any:
    """Return the data in `text`.

    Raises:
        ValueError: it is not JSON; or it is, and has a key twice, a number that is not finite or has many digits, or
            is nested deeply. Says which.
    """
    check_nesting(text.encode(errors="surrogatepass"))
    return json.loads(
        text, object_pairs_hook=_object, parse_constant=_no_number, parse_float=_finite, parse_int=_integer
    )


def check_nesting(text: bytes | bytearray, most: int = MOST_NESTED) -> None:
    """Raise a `ValueError` if lists and objects are nested deeper than `most`; `text` need not be JSON."""
    if _depth(text) > most and _depth(_STRING.sub(b"", text)) > most:  # names of kernels have brackets, too
        raise ValueError(f"nested more than {most} deep")


def _depth(text: bytes | bytearray) -> int:
    return max(accumulate(map(_STEPS.__getitem__, text.translate(None, _OTHERS))), default=0)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} is there twice")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:40]} is too large for a number")
    return value


def _integer(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"{text[:12]}... is an integer of {len(text)} digits")
    return int(text)
