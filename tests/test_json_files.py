# SPDX-License-Identifier: Apache-2.0
"""JSON into dataclasses and back; what does not fit is named; files are replaced as a whole."""

from __future__ import annotations

import json
import os
import re
import tracemalloc
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import pytest

from farskip_compile.base.json_files import (
    SEAL,
    JsonReader,
    encode,
    read_bytes,
    read_json,
    read_sealed,
    replacing,
    sealed,
    unsealed,
    write_sealed,
    write_text,
)
from farskip_compile.errors import ConfigError, ManifestError
from tests.reading.malformed import EVIL, bounded


@dataclass(frozen=True)
class Inner:
    size: int
    rate: float = 1.0


@dataclass(frozen=True)
class Outer:
    name: str
    kind: Literal["a", "b"]
    parts: tuple[Inner, ...] = ()
    table: Mapping[str, float] = field(default_factory=dict)
    last: Inner | None = None
    quick: bool = False
    anything: Any = None


def test_there_and_back() -> None:
    made = Outer("x", "b", (Inner(1), Inner(2, 0.5)), {"k": 3.0}, Inner(4), True, [1, None])
    assert JsonReader("f").decode(Outer, encode(made)) == made
    assert "last" not in encode(Outer("x", "a"))
    assert encode(Outer("x", "a"), null=True)["last"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nam": "y"}, "f: unknown field nam\n.*did you mean 'name'"),
        ({"name": 3}, "f: name must be a string, not int 3"),
        ({"kind": "c"}, "f: kind must be 'a' or 'b', not str 'c'"),
        ({"parts": {}}, "f: parts must be a list, not dict"),
        ({"parts": [{"size": 1, "rat": 2}]}, "f: unknown field parts.0.rat\n.*did you mean 'parts.0.rate'"),
        ({"parts": [{}]}, "f: the field parts.0.size is missing"),
        ({"parts": [{"size": 1.0}]}, "f: parts.0.size must be an integer, not float 1.0"),
        ({"table": {"k": True}}, "f: table.k must be a number, not bool True"),
        ({"table": {1: 1.0}}, "f: table.1.*must be a string, not int 1"),
        ({"last": None}, "f: last must be a JSON object, not null"),
        ({"quick": 1}, "f: quick must be true or false, not int 1"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        JsonReader("f", ManifestError).decode(Outer, {"name": "x", "kind": "a", **change})


class Kind(StrEnum):
    ONE = "one"


@dataclass(frozen=True)
class Line:
    kind: Kind
    length: float | None = None

    @property
    def is_long(self) -> bool:
        return self.length is not None

    def to_json(self) -> dict[str, Any]:
        return encode(self, "is_long", null=True)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Page:
    lines: tuple[Line, ...]
    about: Mapping[str, Line | None]


def test_one_encoder_for_fields_properties_and_objects_that_encode_themselves() -> None:
    line = {"kind": "one", "length": None, "is_long": False}
    written = encode(Page((Line(Kind.ONE),), {"first": Line(Kind.ONE), "second": None}))
    assert written == {"lines": [line], "about": {"first": line, "second": None}}
    assert type(written["lines"][0]["kind"]) is str


def test_hostile_names_and_many_faults_are_refused_in_bounds() -> None:
    whole = {"name": "x", "kind": "a"}
    for change, message in [
        ({"\ud800": 1}, r"unknown field \\ud800"),
        ({1: 1}, "unknown field 1"),
        ({EVIL: 1}, r"unknown field k\\x1b"),
        ({"table": {"\ud800": "x"}}, r"table\..* must be a number"),
        ({"table": {EVIL: "x"}}, r"table\.k\\x1b.* must be a number"),
        ({"parts": ["a"] * 10**5}, r"parts\.0 must be a JSON object"),
        ({"table": dict.fromkeys(map(str, range(10**5)), "a")}, r"table\.0 must be"),
        (dict.fromkeys(map(str, range(10**5))), "unknown field 0"),
        ({"parts": [dict.fromkeys(map(str, range(10**5)))]}, r"unknown field parts\.0\.0"),
    ]:
        found = bounded(lambda change=change: JsonReader("f").decode(Outer, {**whole, **change}))
        assert isinstance(found, ConfigError)
        assert re.search(message, str(found)), found


def test_null_and_versions() -> None:
    reader = JsonReader("f", accepts_null=True)
    assert reader.decode(Outer, {"name": "x", "kind": "a", "last": None}) == Outer("x", "a")
    assert reader.version({"schema": 2, "name": "x"}, (1, 2)) == {"name": "x"}
    for schema in (3, True, None, "1"):
        with pytest.raises(ConfigError, match="and this version reads 1 and 2"):
            reader.version({"schema": schema}, (1, 2))
    with pytest.raises(ConfigError, match="the whole must be a JSON object"):
        reader.version([], (1,))


def test_files_are_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    write_text(path, '{"a": "ä\\r\\n"}')
    path.chmod(0o640)
    write_text(path, "[1]\r\n")
    assert path.read_bytes() == b"[1]\r\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert read_json(path, "list", way_out="") == [1]
    with pytest.raises(UnicodeEncodeError), replacing(path) as temporary:
        temporary.write_text("half \ud800")
    assert path.read_bytes() == b"[1]\r\n"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ManifestError, match="can't write"):
        write_text(tmp_path / "no" / "file", "", error=ManifestError)
    path.write_bytes(b"{\xff")
    with pytest.raises(ConfigError, match="can't read the list"):
        read_json(path, "list", way_out="")


@dataclass(frozen=True)
class Counted:
    kind: Kind
    count: float = 0.0

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError("it counts below zero")


def test_values_that_a_class_itself_refuses() -> None:
    assert JsonReader("f").decode(Counted, encode(Counted(Kind.ONE))).kind is Kind.ONE
    for change, message in [
        ({"kind": "two"}, "f: kind must be 'one', not str 'two'"),
        ({"count": -1}, "f: the whole: it counts below zero"),
        ({"count": 10**400}, "f: count must be a number, not int 1000"),
    ]:
        with pytest.raises(ConfigError, match=message):
            JsonReader("f").decode(Counted, {"kind": "one", **change})


SEALED = {"name": "ä", "numbers": [1, 0.1, float("inf")], "inner": {"sha256": "x", "none": None}}


def test_a_sealed_object_is_plain_json_and_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    write_sealed(path, SEALED)
    written = path.read_bytes()
    assert read_sealed(path, "thing", way_out="") == SEALED
    assert {**SEALED, SEAL: json.loads(written)[SEAL]} == json.loads(written)
    assert unsealed(sealed({**SEALED, SEAL: "mine"})) == {**SEALED, SEAL: "mine"}
    text = written[:-1]  # without the end of the line
    changes = [text[:cut] for cut in range(len(text))]
    for place, byte in enumerate(text):
        changes += [
            text[:place] + bytes([other]) + text[place + 1 :] for other in {byte ^ 1, byte ^ 0x80, 0x20} - {byte}
        ]
    for changed in changes:
        with pytest.raises(ValueError):  # noqa: PT011  (UnicodeDecodeError is one, too)
            unsealed(changed.decode())
    path.write_bytes(changes[0])
    with pytest.raises(ManifestError, match=r"can.t read the thing .*one\.json.*damaged") as caught:
        read_sealed(path, "thing", way_out="another", error=ManifestError)
    assert caught.value.way_out == "another"


def test_a_seal_of_something_else(tmp_path: Path) -> None:
    for text in ["[1]", "{}", "3", '{"a": 1}', f'{{"{SEAL}": "x"}}', sealed({"a": 1}) + " ", sealed({"a": 1}) * 2]:
        with pytest.raises(ValueError, match="damaged"):
            unsealed(text)


def not_a_file(path: Path, kind: str) -> None:
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a link to itself":
        path.symlink_to(path)
    elif kind == "too large":
        with path.open("wb") as file:
            file.truncate(2**36)  # no block of it is on the disk
    elif kind == "nested":
        path.write_text("[" * 10**6)
    elif kind == "a long number":
        path.write_text("1" * 10**5)


KINDS = ["a pipe", "a folder", "a link to itself", "too large", "nested", "a long number", "nothing"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_a_file_of_json_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    not_a_file(tmp_path / "it", kind)
    tracemalloc.start()
    for read in (read_json, read_sealed):
        with pytest.raises(ManifestError, match="can't read the thing"):
            read(tmp_path / "it", "thing", way_out="", error=ManifestError)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    if kind not in ("nested", "a long number"):
        with pytest.raises(OSError, match="it"):
            read_bytes(tmp_path / "it")


def test_size_is_looked_at_before_content(tmp_path: Path) -> None:
    path = tmp_path / "it"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_bytes(path, 4)


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    names = {"fsync": lambda one: Path(f"/proc/self/fd/{one}").resolve().name, "replace": lambda _, to: Path(to).name}

    def watched(name: str) -> Any:
        original = getattr(os, name)

        def call(*args: Any) -> Any:
            seen.append(f"{name} {names[name](*args)}")
            return original(*args)

        return call

    for name in names:
        monkeypatch.setattr(os, name, watched(name))
    write_text(tmp_path / "one", "1")
    assert [re.sub(r"\.one\.\w+\.writing", "temporary", one) for one in seen] == [
        "fsync temporary",
        "replace one",
        f"fsync {tmp_path.name}",
    ]
