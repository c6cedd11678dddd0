# SPDX-License-Identifier: Apache-2.0
"""JSON read strictly into dataclasses and written back; files that are replaced as a whole, and sealed.

In:    parsed JSON and a dataclass; or a path and what to write there.
Out:   the dataclass; a file that is complete or unchanged; of a sealed file, what was written, or an error.
Never: a default for a field that has none, a conversion other than of an integer to a float, a number that is not
       finite, a half-written file.

Fields may be str, bool, int, float, a Literal, a StrEnum, Any, another dataclass, a tuple of these or a mapping from
strings to them, and each of these may be optional. An optional field that is None is left out of the JSON; `null` is
accepted only if a `JsonReader` says so. Whatever does not fit is an error that names the file, the field by its path,
and what was found.

A sealed JSON object has the hash of its text in its last field, `sha256`. Any other byte in it is noticed. That is
against damage, not against people: who can write the file can seal it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import reprlib
import secrets
import shutil
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from farskip_compile.base.reading.files import DOCUMENT_BYTES, read_bytes
from farskip_compile.base.reading.strict_json import check_nesting, parse_json
from farskip_compile.errors import ConfigError, FarSkipError
from farskip_compile.text_utils import did_you_mean, shortened

T = TypeVar("T")

PLAIN = {str: ("a string", "strings"), bool: ("true or false", "booleans"), int: ("an integer", "integers"),
         float: ("a number", "numbers")}  # fmt: skip
"""Types of plain values: one of them in words, and several."""


@dataclass(frozen=True)
class JsonReader:
    """How one kind of JSON data is read.

    Args:
        origin: where the data is from, for messages.
        error: raised for whatever does not fit.
        way_out: of an error about a value; other errors have their own.
        always: way out of every error.
        accepts_null: whether `null` stands for None in optional fields.
    """

    origin: str
    error: type[FarSkipError] = ConfigError
    way_out: str = ""
    always: str = ""
    accepts_null: bool = False

    def decode(self, cls: type[T], data: object, path: str = "") -> T:
        """The dataclass `cls` of plain data; `path` leads to it from the top, with dots.

        Raises:
            FarSkipError: `error`, for a field that is unknown, missing or of the wrong type.
        """
        if not isinstance(data, Mapping):
            self.refuse(path or "the whole", "a JSON object", data)
        hints = get_type_hints(cls)
        entries = {entry.name: entry for entry in dataclasses.fields(cls)}  # type: ignore[arg-type]
        prefix = f"{path}." if path else ""
        self.refuse_unknown(data, entries, prefix)
        values: dict[str, Any] = {}
        for name, entry in entries.items():
            if name in data:
                values[name] = self.value(hints[name], data[name], prefix + name)
            elif entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING:
                raise self._error(f"the field {prefix}{name} is missing", "add it; there is no default")
        try:
            return cls(**values)
        except ValueError as reason:
            raise self._error(f"{path or 'the whole'}: {reason}", self.way_out) from reason

    def refuse_unknown(self, given: Iterable[str], known: Iterable[str], prefix: str = "") -> None:
        """Raise `error` for a field that is not known, with the closest known one."""
        known = list(known)
        for name in given:
            if name not in known:
                hint = did_you_mean(str(name), known, f"known fields: {', '.join(known)}", prefix=prefix)
                raise self._error(f"unknown field {prefix}{name}", hint)

    def version(self, data: object, readable: tuple[int, ...]) -> dict[str, Any]:
        """`data` without its `schema`, which must be one of `readable`."""
        if not isinstance(data, Mapping):
            self.refuse("the whole", "a JSON object", data)
        rest = dict(data)
        if (schema := rest.pop("schema", None)) not in readable or isinstance(schema, bool):
            raise self._error(
                f"schema is {shown(schema)}, and this version reads {' and '.join(map(str, readable))}",
                "write the file again with this version of farskip-compile",
            )
        return rest

    def value(self, hint: Any, value: object, path: str) -> Any:
        """A value of the type `hint`."""
        kind = get_origin(hint)
        if kind in (types.UnionType, Union):  # X | None
            if value is None and self.accepts_null:
                return None
            return self.value(next(arg for arg in get_args(hint) if arg is not types.NoneType), value, path)
        if dataclasses.is_dataclass(hint):
            return self.decode(hint, value, path)  # type: ignore[arg-type]
        if kind is tuple and isinstance(value, list | tuple):
            inner = get_args(hint)[0]
            return tuple(self.value(inner, item, f"{path}.{index}") for index, item in enumerate(value))
        if kind is Mapping and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {key: self.value(get_args(hint)[1], item, f"{path}.{key}") for key, item in value.items()}
        if _is_plain(hint, value):
            return self._finite(value, path) if hint is float else hint(value) if _is_enum(hint) else value
        self.refuse(path, _in_words(hint), value)

    def refuse(self, path: str, wanted: str, found: object) -> NoReturn:
        """Raise `error` for a value that is not what is wanted."""
        it = "null" if found is None else f"{type(found).__name__} {shown(found)}"[:80]
        raise self._error(f"{path} must be {wanted}, not {it}", self.way_out)

    def _finite(self, value: Any, path: str) -> float:
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            self.refuse(path, "a finite number", value)
        return number

    def _error(self, reason: str, way_out: str) -> FarSkipError:
        return self.error(f"{self.origin}: {shortened(reason, 600)}", way_out=self.always or shortened(way_out, 600))


def shown(found: object) -> str:
    """A value for a message: short, whatever it is."""
    try:
        return reprlib.repr(found)
    except ValueError:  # Python writes no integer of more than 4300 digits
        return "of many digits"


def _is_plain(hint: Any, value: object) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if _is_enum(hint):
        return value in [*hint]
    if hint in (int, float) and isinstance(value, bool):
        return False
    return hint is Any or (hint in PLAIN and isinstance(value, int | float if hint is float else hint))


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, StrEnum)


def _in_words(hint: Any) -> str:
    if get_origin(hint) is Literal or _is_enum(hint):
        return f"one of {', '.join(map(str, get_args(hint) or hint))}"
    if get_origin(hint) is tuple:
        inner = get_args(hint)[0]
        return f"a list of {PLAIN[inner][1]}" if inner in PLAIN else "a list"
    return PLAIN[hint][0] if hint in PLAIN else "a JSON object"


def encode(value: Any) -> Any:
    """Plain data of a dataclass; optional fields that are None are left out."""
    if dataclasses.is_dataclass(value):
        entries = ((entry.name, getattr(value, entry.name)) for entry in dataclasses.fields(value))
        return {name: encode(inner) for name, inner in entries if inner is not None}
    if isinstance(value, Mapping):
        return {key: encode(inner) for key, inner in value.items()}
    return [encode(inner) for inner in value] if isinstance(value, tuple) else value


LARGEST = 64 * 2**20
"""Bytes of the largest sealed file that is read."""
SEAL = "sha256"
"""Field of a sealed object."""


def read_json(
    path: Path,
    what: str,
    *,
    way_out: str,
    error: type[FarSkipError] = ConfigError,
    largest: int = DOCUMENT_BYTES,
) -> Any:
    """The JSON in a file; `error` if it can't be read, is not JSON as `reading.parse_json` takes it, or has more than
    `largest` bytes. `what` it is, for messages."""
    return _parsed(path, what, way_out, error, parse_json, largest)


def read_sealed(path: Path, what: str, *, way_out: str, error: type[FarSkipError] = ConfigError) -> dict[str, Any]:
    """What `write_sealed` wrote; `error` if it can't be read or is not as it was written."""
    return _parsed(path, what, way_out, error, lambda text: unsealed(text.removesuffix("\n")), LARGEST)


def write_sealed(
    path: Path, content: Mapping[str, Any], *, way_out: str = "", error: type[FarSkipError] = ConfigError
) -> None:
    """Write a JSON object with its seal, or leave the file as it was; `error` if it can't be written."""
    write_text(path, sealed(content) + "\n", way_out=way_out, error=error)


def sealed(content: Mapping[str, Any]) -> str:
    """A JSON object with at least one field, on one line, with its seal as the last field."""
    return _with_seal(json.dumps(content))


def unsealed(text: str) -> dict[str, Any]:
    """What `sealed` was given.

    Raises:
        ValueError: it is not the text that `sealed` gave, to the byte.
    """
    content, comma, _ = text.rpartition(f', "{SEAL}": "')
    content += "}"
    if not comma or _with_seal(content) != text:
        raise ValueError(f"it is damaged: its content does not have the hash in its last field, {SEAL!r}")
    check_nesting(content.encode())
    found: dict[str, Any] = json.loads(content)
    return found


def _with_seal(text: str) -> str:
    return f'{text[:-1]}, "{SEAL}": "{hashlib.sha256(text.encode()).hexdigest()}"}}'


def _parsed(
    path: Path, what: str, way_out: str, error: type[FarSkipError], parse: Callable[[str], Any], largest: int
) -> Any:
    try:
        return parse(read_bytes(path, largest).decode())
    except (OSError, ValueError) as reason:
        raise error(f"can't read the {what} {str(path)!r}: {reason}", way_out=way_out) from reason


def write_text(path: Path, text: str, *, way_out: str = "", error: type[FarSkipError] = ConfigError) -> None:
    """Write a text file in UTF-8, with its line ends as they are, or leave the one that is there as it was.

    The new file takes the permissions of the one that it replaces. Raises `error` if it can't be written.
    """
    try:
        with replacing(path) as temporary, temporary.open("xb") as file:
            file.write(text.encode())
    except OSError as reason:
        raise error(f"can't write {path}: {reason.strerror}", way_out=way_out) from reason


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the name of a temporary file, which takes the place of `path` if the block ends without an exception.

    Both are on the disk then, the content and the name. What a killed process leaves has a name that `locks.TEMPORARY`
    knows.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.writing")
    try:
        yield temporary
        flush(temporary)
        if path.is_file():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to its disk."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":
        return  # it can't be opened there
    descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
