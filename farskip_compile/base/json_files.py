# SPDX-License-Identifier: Apache-2.0
"""JSON data decoded strictly into dataclasses and encoded again; files that are replaced as a whole, and sealed files.

In:    parsed JSON and a type; or a path and the content to write.
Out:   an instance of the type; a file that is complete or unchanged; the content of a sealed file, or an error.
Never: a default for a field that has none, a conversion other than of an integer to a float, a number that is not
       finite, a half-written file.

pydantic decodes, and is imported with the first decoding. Types may be whatever it knows: dataclasses of str, bool,
int, float, Literal, StrEnum, Any, other dataclasses, tuples and mappings. A value that does not fit is an error that
names the file, the field by its path, and the value.

The last field of a sealed JSON object, `sha256`, is the hash of its text, so that any other byte in it is noticed. The
seal protects against damage, not against people: who can write the file can seal it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import reprlib
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

from farskip_compile.base.reading.files import DOCUMENT_BYTES, read_bytes
from farskip_compile.base.reading.strict_json import check_nesting, parse_json
from farskip_compile.errors import ConfigError, FarSkipError
from farskip_compile.text_utils import did_you_mean, shortened

T = TypeVar("T")

EXPECTED = {
    **{"string_type": "a string", "bool_type": "true or false", "int_type": "an integer", "float_type": "a number"},
    **{"finite_number": "a finite number", "tuple_type": "a list"},
    **dict.fromkeys(("dict_type", "dataclass_type"), "a JSON object"),
}
"""Type of an error of pydantic -> the expected value in words."""
STRICTNESS: dict[str, dict[str, bool]] = {
    **{kind: {"strict": True} for kind in ("str", "bool", "int")},
    "float": {"strict": True, "allow_inf_nan": False},
    **{kind: {"fail_fast": True} for kind in ("tuple", "dict")},
}
"""Type of a schema of pydantic -> settings of it. Only values are strict: strict tuples take no lists."""


@dataclass(frozen=True)
class JsonReader:
    """A decoder of one kind of JSON data.

    Args:
        origin: where the data is from, for messages.
        error: raised for data that does not fit.
        way_out: of an error about a value; other errors have their own.
        always: way out of every error.
        accepts_null: whether `null` stands for None in optional fields.
    """

    origin: str
    error: type[FarSkipError] = ConfigError
    way_out: str = ""
    always: str = ""
    accepts_null: bool = False

    def decode(self, kind: type[T], data: object, path: str = "") -> T:
        """Return the instance of `kind` that `data` describes; `path` leads to it from the top, with dots.

        Raises:
            FarSkipError: `error`, for a field that is unknown, missing or of the wrong type.
        """
        from pydantic import ValidationError

        try:
            found: T = _validator(kind, self.accepts_null).validate_python(data)  # type: ignore[arg-type]
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
        else:
            return found
        place = ".".join([*([path] if path else []), *map(str, problem["loc"])])
        context = problem.get("ctx", {})
        if "unknown" in context:
            self.refuse_unknown(context["unknown"], context["known"], f"{place}." if place else "")
        if problem["type"] == "missing":
            raise self._error(f"the field {place} is missing", "add it; there is no default")
        if problem["type"] == "value_error":
            raise self._error(f"{place or 'the whole'}: {context['error']}", self.way_out)
        expected = EXPECTED.get(problem["type"]) or context.get("expected") or problem["msg"]
        self.refuse(place or "the whole", expected, problem["input"])

    def refuse_unknown(self, given: Iterable[str], known: Iterable[str], prefix: str = "") -> None:
        """Raise `error` for the first field that is not known, with the closest known one."""
        known = list(known)
        for name in given:
            if name not in known:
                hint = did_you_mean(str(name), known, f"known fields: {', '.join(known)}", prefix=prefix)
                raise self._error(f"unknown field {prefix}{name}", hint)

    def version(self, data: object, readable: tuple[int, ...]) -> dict[str, Any]:
        """Return `data` without its `schema`, which must be one of `readable`."""
        if not isinstance(data, Mapping):
            self.refuse("the whole", "a JSON object", data)
        rest = dict(data)
        if (schema := rest.pop("schema", None)) not in readable or isinstance(schema, bool):
            raise self._error(
                f"schema is {shown(schema)}, and this version reads {' and '.join(map(str, readable))}",
                "write the file again with this version of farskip-compile",
            )
        return rest

    def refuse(self, path: str, expected: str, found: object) -> NoReturn:
        """Raise `error` for a value that is not the expected one."""
        value = "null" if found is None else f"{type(found).__name__} {shown(found)}"[:80]
        raise self._error(f"{path} must be {expected}, not {value}", self.way_out)

    def _error(self, reason: str, way_out: str) -> FarSkipError:
        return self.error(f"{self.origin}: {shortened(reason, 600)}", way_out=self.always or shortened(way_out, 600))


def shown(found: object) -> str:
    """Return a short text for a value in a message, whatever the value is."""
    try:
        return reprlib.repr(found)
    except ValueError:  # Python writes no integer of more than 4300 digits
        return "of many digits"


@functools.cache
def _validator(kind: Any, accepts_null: bool) -> Any:
    """Return the validator of pydantic for `kind`, as strict as JSON of others needs it."""
    from pydantic import TypeAdapter
    from pydantic_core import SchemaValidator

    return SchemaValidator(_strict(TypeAdapter(kind).core_schema, accepts_null))


def _strict(schema: Any, accepts_null: bool) -> Any:
    """Return a core schema of pydantic, or a part of one, with `STRICTNESS` and without unknown fields and null."""
    if isinstance(schema, list):
        return [_strict(part, accepts_null) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kind = str(schema.get("type"))
    if kind == "nullable" and not accepts_null:
        return _strict(schema["schema"], accepts_null)
    made = {key: _strict(part, accepts_null) for key, part in schema.items()} | STRICTNESS.get(kind, {})
    if kind != "dataclass":
        return made
    check = functools.partial(_only_known, made["fields"])
    outer = {"type": "function-before", "function": {"type": "no-info", "function": check}, "schema": made}
    return outer | ({"ref": made.pop("ref")} if "ref" in made else {})


def _only_known(known: list[str], data: Any) -> Any:
    """Return `data` if it has no field that is not known.

    pydantic would list all unknown fields: hundreds of megabytes for a file of two.
    """
    from pydantic_core import PydanticCustomError

    if not isinstance(data, Mapping):
        return data
    for name in data:
        if name not in known:
            raise PydanticCustomError("unknown_field", "unknown field", {"unknown": [name], "known": known})
    return dict(data)


def encode(value: Any, *properties: str, without: Iterable[str] = (), null: bool = False) -> Any:
    """Return plain data for `json.dumps`: the fields of a dataclass, then some of its properties.

    An object inside of `value` that has a method `to_json` is encoded by it.

    Args:
        value: a dataclass, an enum, a mapping, a list or tuple of these, or plain data.
        properties: names of properties of a dataclass.
        without: names of fields that are not written.
        null: whether fields that are None are written, as null; else they are left out.
    """
    if dataclasses.is_dataclass(value):
        names = [entry.name for entry in dataclasses.fields(value) if entry.name not in without]
        entries = {name: getattr(value, name) for name in (*names, *properties)}
        return {name: _inner(one, null) for name, one in entries.items() if null or one is not None}
    if isinstance(value, Mapping):
        return {key: _inner(one, null) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [_inner(one, null) for one in value]
    return value.value if isinstance(value, Enum) else value


class JsonRecord:
    """A base of dataclasses whose JSON is their fields, null included, and some of their properties."""

    ALSO_WRITTEN: ClassVar[tuple[str, ...]] = ()
    """Names of properties."""
    NOT_WRITTEN: ClassVar[tuple[str, ...]] = ()
    """Names of fields."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data for `json.dumps`."""
        found = encode(self, *self.ALSO_WRITTEN, without=self.NOT_WRITTEN, null=True)
        assert isinstance(found, dict)
        return found


def _inner(value: Any, null: bool) -> Any:
    return value.to_json() if hasattr(value, "to_json") else encode(value, null=null)


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
    """Return the parsed JSON of a file; `what` names the content in messages.

    Raises:
        FarSkipError: `error`, if the file can't be read, has more than `largest` bytes, or `parse_json` refuses it.
    """
    return _parsed(path, what, way_out, error, parse_json, largest)


def read_sealed(path: Path, what: str, *, way_out: str, error: type[FarSkipError] = ConfigError) -> dict[str, Any]:
    """Return the object that `write_sealed` wrote; raise `error` if the file can't be read or was changed."""
    return _parsed(path, what, way_out, error, lambda text: unsealed(text.removesuffix("\n")), LARGEST)


def write_sealed(
    path: Path, content: Mapping[str, Any], *, way_out: str = "", error: type[FarSkipError] = ConfigError
) -> None:
    """Write a JSON object with its seal, or leave the file as it was; raise `error` if that fails."""
    write_text(path, sealed(content) + "\n", way_out=way_out, error=error)


def sealed(content: Mapping[str, Any]) -> str:
    """Return a JSON object with at least one field as one line, with its seal as the last field."""
    return _with_seal(json.dumps(content))


def unsealed(text: str) -> dict[str, Any]:
    """Return the object that `sealed` made `text` of.

    Raises:
        ValueError: `text` is not, to the byte, what `sealed` returned.
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
