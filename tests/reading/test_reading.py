# SPDX-License-Identifier: Apache-2.0
"""Files of others: regular ones only, within a size, packed or not; JSON that says one thing."""

from __future__ import annotations

import functools
import gzip
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farskip_compile.base.reading.files import DOCUMENT_BYTES, TooLarge, read_bytes, read_unpacked
from farskip_compile.base.reading.strict_json import check_nesting, parse_json
from tests.reading.malformed import bomb, bounded


@pytest.mark.parametrize("read", [read_bytes, lambda path: read_unpacked(path, 2**30)], ids=["plain", "packed"])
def test_only_regular_files_are_read(read: Callable[[Path], bytes], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        before = time.monotonic()
        with pytest.raises(OSError, match=r"regular|directory"):
            read(path)
        assert time.monotonic() - before < 1


def test_the_size_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    assert read_bytes(path, 100) == read_unpacked(path, 100) == b"x" * 100
    for read in (read_bytes, read_unpacked):
        with pytest.raises(TooLarge, match="more than 99 bytes"):
            read(path, 99)
    with path.open("wb") as file:
        file.truncate(2**40)  # takes no space on the disk
    assert "more than 1,073,741,824 bytes" in bounded(lambda: refusal(path, 2**30))


def refusal(path: Path, largest: int) -> str:
    with pytest.raises(TooLarge) as caught:
        read_unpacked(path, largest)
    return str(caught.value)


def test_what_unpacks_to_too_much_is_refused_early(tmp_path: Path) -> None:
    path = tmp_path / "file.gz"
    path.write_bytes(bomb(b"[", b" ", 2 * 2**30))
    assert path.stat().st_size < 3e6
    for largest, says in ((2**40, "100 times its size"), (2**22, "more than 4,194,304 bytes")):
        assert says in bounded(functools.partial(refusal, path, largest))


def test_several_parts_in_gzip_are_one_content(tmp_path: Path) -> None:
    path = tmp_path / "file.gz"
    content = os.urandom(3 * 2**20)
    path.write_bytes(gzip.compress(content[:100]) + gzip.compress(content[100:]))
    assert read_unpacked(path, 2**30) == content
    path.write_bytes(gzip.compress(b"[" + b"0," * 7 * 2**20))  # small, and of few different bytes: as a test may be
    assert len(read_unpacked(path, 2**30)) == 1 + 14 * 2**20


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' is there twice"),
        ("[NaN]", "NaN is not a number"),
        ("[-Infinity]", "-Infinity is not a number"),
        ("[1e999]", "1e999 is too large for a number"),
        (f"[{10**400}]", "is an integer of 401 digits"),
        ("9" * 100_000, "is an integer of 100000 digits"),
        ("[" * 65 + "]" * 65, "nested more than 64 deep"),
        ("[" * 2**20, "nested more than 64 deep"),
        ('{"a":' * 2**18, "nested more than 64 deep"),
        ('["\\"[[[[' + "[" * 100 + '", ' + "[" * 65, "nested more than 64 deep"),
        ('"' + '\\"' * 2**20, "Unterminated string"),
        ('["' + "[" * 100, "Unterminated string"),
    ],
    ids=range(12),
)
def test_json_that_is_refused(written: str, says: str) -> None:
    with pytest.raises(ValueError, match="(?s)" + says.replace("(", r"\(").replace("+", r"\+")):
        bounded(lambda: parse_json(written))


@pytest.mark.parametrize("piece", ['{"":0}', "[]", '{"a":[{}]}', "1.5", '""', '"\U0001f600"', "10000000"])
def test_any_document_of_the_largest_size_is_parsed_within_bounds(piece: str) -> None:
    size = DOCUMENT_BYTES // (len(piece.encode()) + 1)
    text = "[" + f"{piece}," * (size - 1) + piece + "]"
    before = time.thread_time()
    json.loads(text)
    plain = time.thread_time() - before  # a slow machine is slow here, too
    found = bounded(lambda: parse_json(text), seconds=max(3.0, 10 * plain))
    assert len(found) == size


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_json_that_is_read(value: Any) -> None:
    assert parse_json(json.dumps(value)) == parse_json(json.dumps(value, ensure_ascii=False)) == value


@given(st.text('[]{}"\\ab', max_size=40), st.integers(1, 5))
def test_nesting_is_counted_outside_of_strings_only(written: str, most: int) -> None:
    depth, deepest, position = 0, 0, 0
    while position < len(written):
        if written[position] == '"':  # to its end, or to the end
            position += 1
            while position < len(written) and written[position] != '"':
                position += 2 if written[position] == "\\" else 1
        else:
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(written[position], 0)
            deepest = max(deepest, depth)
        position += 1
    if deepest > most:
        with pytest.raises(ValueError, match="nested"):
            check_nesting(written.encode(), most)
    else:
        check_nesting(written.encode(), most)
