# SPDX-License-Identifier: Apache-2.0
"""The contents of a Python object, to find out whether they were changed, and to put them back.

In:    a module, another object with attributes, a list, a dictionary, a set, a context variable or a cell.
Out:   whether the object holds other things, by identity, or by value for immutable ones (numbers, text).
Never: looks into the things that the object holds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from types import CellType
from typing import Any

from torch import nn

PLAIN = (int, float, complex, str, bytes, bool, type(None))
NOTHING = object()


class ObjectState:
    """The contents of `value`, an object with a `name` for messages, at one time."""

    def __init__(self, name: str, value: Any) -> None:
        self.name = name
        self._value = value
        self._places = _places(value)
        self._before = [(place, place.read()) for place in self._places]

    def restore(self) -> bool:
        """Return whether the contents have changed, and put them back if so.

        An object of an unknown kind counts as changed.
        """
        changed = not self._places
        for place, before in self._before:
            if not _are_same_contents(place.read(), before):
                changed = True
                place.write(before)
        return changed


class _Place:
    """One place in an object that can be read and written."""

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], object]) -> None:
        self.read = read
        self.write = write


def _places(value: Any) -> list[_Place]:
    if isinstance(value, ContextVar):
        variable = value

        def put(before: Any) -> None:
            if before is not NOTHING:
                variable.set(before)

        return [_Place(lambda: variable.get(NOTHING), put)]
    if isinstance(value, CellType):
        return [_Place(lambda: value.cell_contents, lambda before: setattr(value, "cell_contents", before))]
    found = [_container(value)] if isinstance(value, list | deque | dict | set) else []
    if hasattr(value, "__dict__"):
        found.append(_container(vars(value)))
    if isinstance(value, nn.Module):
        found += [_container(held) for held in vars(value).values() if isinstance(held, dict)]
    return found


def _container(value: Any) -> _Place:
    def write(before: Any) -> None:
        value.clear()
        if isinstance(value, list | deque):
            value.extend(before)
        else:
            value.update(before)

    return _Place(lambda: dict(value) if isinstance(value, dict) else type(value)(value), write)


def _are_same_contents(now: Any, before: Any) -> bool:
    if isinstance(before, dict) and isinstance(now, dict):
        return list(now) == list(before) and all(_is_same(now[key], before[key]) for key in before)
    if isinstance(before, list | deque) and isinstance(now, list | deque):
        return len(now) == len(before) and all(map(_is_same, now, before))
    return _is_same(now, before) or (isinstance(before, set) and now == before)


def _is_same(now: Any, before: Any) -> bool:
    return now is before or (type(now) is type(before) and isinstance(now, PLAIN) and now == before)
