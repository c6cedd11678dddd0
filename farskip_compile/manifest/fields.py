"""Read JSON strictly: every value is asked for by key and type, and a wrong one is an error that names key and file.

Contract: `Fields` wraps one JSON object. Each method takes one key, checks its value, and remembers that it was asked
for; `end` refuses keys that nobody asked for. Never: a default for what is missing, a conversion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from farskip_compile.errors import ManifestError


class Fields:
    """The keys of one JSON object.

    Args:
        data: what should be the object.
        origin: where it is from, for messages: a file, or what the caller passed.
        path: key that leads to it from the top, with a dot after it.

    Raises:
        ManifestError: `data` is something else.
    """

    def __init__(self, data: object, origin: str, path: str = "") -> None:
        self.origin = origin
        self.path = path
        if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
            raise _error(origin, f"{path.removesuffix('.') or 'the whole'} is no JSON object, but {_shown(data)}")
        self.data: Mapping[str, Any] = data
        self._asked: set[str] = set()

    def get(self, key: str) -> Any:
        """The value of `key`, of any type."""
        self._asked.add(key)
        if key not in self.data:
            raise _error(self.origin, f"the key {self.path + key!r} is missing")
        return self.data[key]

    def text(self, key: str) -> str:
        """A string."""
        value = self.get(key)
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def number(self, key: str) -> int:
        """A whole number, 0 or more."""
        value = self.get(key)
        if not is_count(value):
            raise self.wrong(key, "a whole number, 0 or more")
        return int(value)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        value = self.get(key)
        if not is_list_of_texts(value):
            raise self.wrong(key, "a list of strings")
        return tuple(value)

    def inner(self, key: str) -> Fields:
        """An object."""
        return Fields(self.get(key), self.origin, f"{self.path}{key}.")

    def inners(self, key: str) -> list[Fields]:
        """A list of objects."""
        value = self.get(key)
        if not isinstance(value, list | tuple):
            raise self.wrong(key, "a list of objects")
        return [Fields(one, self.origin, f"{self.path}{key}[{index}].") for index, one in enumerate(value)]

    def wrong(self, key: str, wanted: str, found: object = None) -> ManifestError:
        """The error for a value of `key` that is not `wanted`; `found` if `key` leads further down."""
        value = self.data.get(key, found)
        return _error(self.origin, f"{self.path + key!r} should be {wanted}, and is {_shown(value)}")

    def end(self) -> None:
        """Refuse keys that were not asked for.

        Raises:
            ManifestError: there is one.
        """
        for key in self.data:
            if key not in self._asked:
                raise _error(self.origin, f"the key {self.path + key!r} is unknown")


def is_count(value: object) -> bool:
    """Whether `value` is a whole number, 0 or more; `True` is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_list_of_texts(value: object) -> bool:
    """Whether `value` is a list of strings."""
    return isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _error(origin: str, reason: str) -> ManifestError:
    return ManifestError(
        f"{origin}: {reason}",
        way_out="write the manifest anew with farskip_compile.describe and save_manifest; it is not meant to be edited",
    )
