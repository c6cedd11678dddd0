# SPDX-License-Identifier: Apache-2.0
"""JSON as text: written readably, and edited in place without touching what stands around.

Contract: `compact` writes what fits on one line on one line, and no character that a terminal would obey. `with_key`
sets one key of the outermost object and keeps every other character as it was: order, indentation and numbers as they
are written. `without_key` takes it out again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from farskip_compile.text_utils import UNPRINTABLE

WIDTH = 120
UNIT = "  "

_SPACE = re.compile(r"[ \t\n\r]*")


def compact(value: Any, indent: str = "") -> str:
    """Return JSON with one entry a line; an entry that fits on a line, or a list of plain values, is not broken.

    Args:
        value: plain data.
        indent: put before all lines but the first.
    """
    line = _line(value)
    entries: list[str]
    if isinstance(value, Mapping) and value:
        entries = [f"{_line(key)}: {compact(one, indent + UNIT)}" for key, one in value.items()]
        opening, closing = "{", "}"
    elif isinstance(value, list) and any(isinstance(one, list | Mapping) for one in value):
        entries = [compact(one, indent + UNIT) for one in value]
        opening, closing = "[", "]"
    else:
        return line
    if indent and len(indent) + len(line) <= WIDTH:
        return line
    body = f",\n{indent}{UNIT}".join(entries)
    return f"{opening}\n{indent}{UNIT}{body}\n{indent}{closing}"


def _line(value: Any) -> str:
    """Return readable JSON on one line, with characters that a terminal would obey as escapes."""
    return UNPRINTABLE.sub(lambda found: json.dumps(found[0])[1:-1], json.dumps(value, ensure_ascii=False))


def with_key(text: str, key: str, value: Any) -> str:
    """Return `text`, an object (else a `ValueError`), with `key` set to `value`; a new key stands last."""
    places, first, last = _places(text)
    opening = text[text.index("{") + 1 : first]  # what comes before the first key comes before each
    indent = opening.rpartition("\n")[2] if "\n" in opening else UNIT
    written = compact(value, indent)
    if key in places:
        _, start, end = places[key]
        return text[:start] + written + text[end:]
    entry = f"{json.dumps(key)}: {written}"
    if not places:
        return f"{text[: text.index('{') + 1]}\n{UNIT}{entry}\n{text[last:]}"
    end = max(stop for _, _, stop in places.values())
    return f"{text[:end]},{opening or ' '}{entry}{text[end:]}"


def without_key(text: str, key: str) -> str:
    """Return `text`, an object (else a `ValueError`), without `key`."""
    places, _, _ = _places(text)
    if key not in places:
        return text
    begin, _, end = places[key]
    before = max((stop for _, _, stop in places.values() if stop <= begin), default=None)
    if before is not None:
        return text[:before] + text[end:]
    after = min((start for start, _, _ in places.values() if start >= end), default=end)
    return text[:begin] + text[after:]


def _places(text: str) -> tuple[dict[str, tuple[int, int, int]], int, int]:
    """Return where each key, its value and its end are; where the first key may stand; where the object ends."""
    decoder = json.JSONDecoder()
    places: dict[str, tuple[int, int, int]] = {}
    position = first = _expect(text, 0, "{")
    while text[position] != "}":
        if places:
            position = _expect(text, position, ",")
        name, end = decoder.raw_decode(text, position)
        if not isinstance(name, str):
            raise ValueError(f"no key at character {position}")
        start = _expect(text, end, ":")
        _, end = decoder.raw_decode(text, start)
        places[name] = (position, start, end)
        position = _skip(text, end)
    return places, first, position


def _expect(text: str, position: int, character: str) -> int:
    """Return the place after `character` and the white space around it."""
    position = _skip(text, position)
    if text[position : position + 1] != character:
        raise ValueError(f"{character!r} is missing at character {position}")
    return _skip(text, position + 1)


def _skip(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found is not None else position
