# SPDX-License-Identifier: Apache-2.0
"""Files as nobody should write them: what tests of readers share.

`bounded` runs a reader within the time and memory that a refusal may take; `mutated` and `damaged` draw documents and
bytes that are nearly valid; `bomb` is a small file that unpacks to a large one.
"""

from __future__ import annotations

import copy
import gzip
import json
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from farskip_compile.errors import FarSkipError

SECONDS, BYTES = 1.0, 100e6

EVIL = "k\x1b[2J\x9b1m[/x][red]<script>alert(1)</script>\"'&\u202e\x07\r"
"""A name with escape sequences, markup of Rich, HTML, and a mark that turns the direction of writing."""

ODD: list[Any] = [
    None, True, False, 0, -1, 10**18, 10**400, -(10**30), 1e308, 1e-320, float("inf"), float("nan"), "", EVIL, "\ud800",
    "9" * 5000, "{0-99999999}", "e..e", [], {}, [[]], [None], {"": 0}, ["e"] * 50, {"a": {"b": []}}, [10**400],
]  # fmt: skip


def bounded(read: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """What `read` gives or the `FarSkipError` that it raises; anything else fails, and so does taking too much.

    It runs once more to watch its memory, which takes time. Time is the processor's, and the least of three runs where
    the first took too much: what a collection of garbage of other tests takes does not count, nor do other processes.
    """
    found, taken = _timed(read)
    for _ in range(2):
        taken = taken if taken < seconds else min(taken, _timed(read)[1])
    tracemalloc.start()
    try:
        _outcome(read)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken < seconds, f"{taken:.1f} s"
    assert peak < BYTES, f"{peak / 1e6:.0f} MB"
    return found


def _timed(read: Callable[[], Any]) -> tuple[Any, float]:
    before = time.thread_time()
    found = _outcome(read)
    return found, time.thread_time() - before


def _outcome(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except FarSkipError as error:
        return error


def bomb(head: bytes, filling: bytes, size: int) -> bytes:
    """In gzip: `head`, and `filling` again and again, `size` bytes in all; made without having them."""
    member = filling * (2**22 // len(filling))
    return gzip.compress(head) + gzip.compress(member) * (size // len(member))


@st.composite
def mutated(draw: st.DrawFn, document: Any) -> Any:
    """`document` with one to three of its values replaced, removed or there twice."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(document))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        change = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        odd = copy.deepcopy(draw(st.sampled_from(ODD)))
        if change == "replace":
            holder[key] = odd
        elif change == "remove":
            del holder[key]
        elif isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        else:
            holder[draw(st.sampled_from([EVIL, "x", "0.a.b", "{0-3}"]))] = odd
    return document


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` with a stretch left out, repeated, or replaced by other bytes."""
    start = draw(st.integers(0, len(content)))
    end = draw(st.integers(start, min(len(content), start + 200)))
    other = draw(
        st.sampled_from([b"", content[start:end] * 2, b"[" * 5000, b'{"a":' * 300, b"\x00", b'"', b"\\", b"NaN"])
    )
    return content[:start] + (draw(st.binary(max_size=20)) if draw(st.booleans()) else other) + content[end:]


def text(document: Any) -> bytes:
    """As JSON, odd numbers included."""
    return json.dumps(document).encode()


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)
