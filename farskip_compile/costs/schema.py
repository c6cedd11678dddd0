"""Frozen dataclasses to plain JSON data and back, with an error for whatever does not fit.

Contract: knows str, int, float, nested dataclasses, tuples of one type, mappings from strings to one type, and each of
them optional, which is what a hardware profile is made of; anything else is a defect of the dataclass, not of the
data.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from farskip_compile.errors import ConfigError
from farskip_compile.text_utils import did_you_mean

T = TypeVar("T")


def encode(value: Any) -> Any:
    """Plain data of a dataclass; optional fields that are None are left out."""
    if dataclasses.is_dataclass(value):
        entries = ((entry.name, getattr(value, entry.name)) for entry in dataclasses.fields(value))
        return {name: encode(inner) for name, inner in entries if inner is not None}
    if isinstance(value, Mapping):
        return {key: encode(inner) for key, inner in value.items()}
    return [encode(inner) for inner in value] if isinstance(value, tuple) else value


def decode(cls: type[T], data: object, *, origin: str, path: str = "") -> T:
    """The dataclass `cls` of plain data.

    Args:
        cls: a dataclass.
        data: what `encode` returned.
        origin: where the data is from, for errors.
        path: dotted path of this part.

    Raises:
        ConfigError: a field unknown, missing or of the wrong type, named by its path.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{origin}: {path} must be a JSON object, not {_kind(data)}")
    hints = get_type_hints(cls)
    entries = {entry.name: entry for entry in dataclasses.fields(cls)}  # type: ignore[arg-type]
    prefix = f"{path}." if path else ""
    for name in data:
        if name not in entries:
            hint = did_you_mean(str(name), entries, f"known fields: {', '.join(entries)}", prefix=prefix)
            raise ConfigError(f"{origin}: unknown field {prefix}{name}", way_out=hint)
    values: dict[str, Any] = {}
    for name, entry in entries.items():
        if name in data:
            values[name] = _value(hints[name], data[name], origin, prefix + name)
        elif entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{origin}: the field {prefix}{name} is missing", way_out="add it; there is no default")
    return cls(**values)


def _value(hint: Any, value: object, origin: str, path: str) -> Any:
    if get_origin(hint) is types.UnionType:  # X | None; None is written by leaving the field out
        hint = next(arg for arg in get_args(hint) if arg is not type(None))
    if dataclasses.is_dataclass(hint):
        return decode(hint, value, origin=origin, path=path)  # type: ignore[arg-type]
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str):
        return value
    if get_origin(hint) is tuple and isinstance(value, list):
        inner = get_args(hint)[0]
        if inner is not str or all(isinstance(item, str) for item in value):
            return tuple(_value(inner, item, origin, f"{path}.{index}") for index, item in enumerate(value))
    if get_origin(hint) is Mapping and isinstance(value, Mapping):
        inner = get_args(hint)[1]
        if all(isinstance(key, str) for key in value) and (
            inner is not str or all(isinstance(item, str) for item in value.values())
        ):
            return {key: _value(inner, item, origin, f"{path}.{key}") for key, item in value.items()}
        raise ConfigError(f"{origin}: {path} must map strings to strings")
    wanted = {float: "a number", int: "an integer", str: "a string"}.get(hint)
    if wanted is None:
        strings = get_origin(hint) is tuple and get_args(hint)[0] is str
        wanted = "a list of strings" if strings else "a list" if get_origin(hint) is tuple else "a JSON object"
    raise ConfigError(f"{origin}: {path} must be {wanted}, not {_kind(value)}")


def _kind(value: object) -> str:
    return "null" if value is None else f"{type(value).__name__} {value!r}"[:80]
