# SPDX-License-Identifier: Apache-2.0
"""What is in an object of Python, to see whether it was changed, and to put it back.

In:    a module, another object with attributes, a list, a dictionary, a set, a context variable or a cell.
Out:   whether it holds something else than it did, by identity, or by value for what can't change (numbers, text).
Never: looks into what it holds.
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


class Contents:
    """What `value` holds now; `name` says what it is."""

    def __init__(self, name: str, value: Any) -> None:
        self.name = name
        self._value = value
        self._parts = _parts(value)
        self._before = [(part, part.read()) for part in self._parts]

    def restore(self) -> bool:
        """Whether it holds something else now; if so, it holds what it held again.

        Of a kind of object that is not known, this is taken for granted.
        """
        changed = not self._parts
        for part, before in self._before:
            if not _same(part.read(), before):
                changed = True
                part.write(before)
        return changed


class _Part:
    """One place in an object."""

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], object]) -> None:
        self.read = read
        self.write = write


def _parts(value: Any) -> list[_Part]:
    if isinstance(value, ContextVar):
        variable = value

        def put(before: Any) -> None:
            if before is not NOTHING:
                variable.set(before)

        return [_Part(lambda: variable.get(NOTHING), put)]
    if isinstance(value, CellType):
        return [_Part(lambda: value.cell_contents, lambda before: setattr(value, "cell_contents", before))]
    found = [_container(value)] if isinstance(value, list | deque | dict | set) else []
    if hasattr(value, "__dict__"):
        found.append(_container(vars(value)))
    if isinstance(value, nn.Module):
        found += [_container(held) for held in vars(value).values() if isinstance(held, dict)]
    return found


def _container(value: Any) -> _Part:
    def write(before: Any) -> None:
        value.clear()
        value.extend(before) if isinstance(value, list | deque) else value.update(before)

    return _Part(lambda: dict(value) if isinstance(value, dict) else type(value)(value), write)


def _same(now: Any, before: Any) -> bool:
    if isinstance(before, dict) and isinstance(now, dict):
        return list(now) == list(before) and all(_same_one(now[key], before[key]) for key in before)
    if isinstance(before, list | deque) and isinstance(now, list | deque):
        return len(now) == len(before) and all(map(_same_one, now, before))
    return _same_one(now, before) or (isinstance(before, set) and now == before)


def _same_one(now: Any, before: Any) -> bool:
    return now is before or (type(now) is type(before) and isinstance(now, PLAIN) and now == before)
