# SPDX-License-Identifier: Apache-2.0
"""A count, for each thread, of the calls of this backend and of the runs of its graphs.

Contract: a number that only grows. A call of a compiled model in which it does not grow ran the model as it is written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class _Local(threading.local):
    count = 0
    on_purpose = False


_local = _Local()


def activity() -> int:
    """Return the number."""
    return _local.count


def is_on_purpose() -> bool:
    """Return whether a model may run in its original wiring here."""
    return _local.on_purpose


@contextmanager
def original_on_purpose() -> Iterator[None]:
    """Let models run in their original wiring without a word: something compares with it."""
    before, _local.on_purpose = _local.on_purpose, True
    try:
        yield
    finally:
        _local.on_purpose = before


def note_activity() -> None:
    """The backend is called."""
    _local.count += 1


def counted(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Return `compiled`, a graph, whose runs are counted."""

    def run(*args: Any) -> Any:
        _local.count += 1
        return compiled(*args)

    return run
