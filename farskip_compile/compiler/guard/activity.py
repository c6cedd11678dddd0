# SPDX-License-Identifier: Apache-2.0
"""A count for each thread: calls of this backend, and runs of its graphs.

Contract: the number only grows. A call of a compiled model in which it does not grow ran the model as it is written.
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
    """Return the count of this thread."""
    return _local.count


def is_on_purpose() -> bool:
    """Return whether a model may run in its original wiring here."""
    return _local.on_purpose


@contextmanager
def original_on_purpose() -> Iterator[None]:
    """Let models run in their original wiring within the block, without an error or a warning."""
    before, _local.on_purpose = _local.on_purpose, True
    try:
        yield
    finally:
        _local.on_purpose = before


def note_activity() -> None:
    """Count a call of the backend."""
    _local.count += 1


def counted(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Return the graph `compiled` as a function that counts its runs."""

    def run(*args: Any) -> Any:
        _local.count += 1
        return compiled(*args)

    return run
