"""JSON into dataclasses and back; what does not fit is named; files are replaced as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from farskip_compile.errors import ConfigError, ManifestError
from farskip_compile.json_files import Reader, encode, read_json, replacing, write_text


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
    assert Reader("f").decode(Outer, encode(made)) == made
    assert "last" not in encode(Outer("x", "a"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nam": "y"}, "f: unknown field nam\n.*did you mean 'name'"),
        ({"name": 3}, "f: name must be a string, not int 3"),
        ({"kind": "c"}, "f: kind must be one of a, b, not str 'c'"),
        ({"parts": {}}, "f: parts must be a list, not dict"),
        ({"parts": [{"size": 1, "rat": 2}]}, "f: unknown field parts.0.rat\n.*did you mean 'parts.0.rate'"),
        ({"parts": [{}]}, "f: the field parts.0.size is missing"),
        ({"parts": [{"size": 1.0}]}, "f: parts.0.size must be an integer, not float 1.0"),
        ({"table": {"k": True}}, "f: table.k must be a number, not bool True"),
        ({"table": {1: 1.0}}, "f: table must be a JSON object, not dict"),
        ({"last": None}, "f: last must be a JSON object, not null"),
        ({"quick": 1}, "f: quick must be true or false, not int 1"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        Reader("f", ManifestError).decode(Outer, {"name": "x", "kind": "a", **change})


def test_null_and_versions() -> None:
    reader = Reader("f", accepts_null=True)
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
