# SPDX-License-Identifier: Apache-2.0
"""Stdout for one JSON document, stderr for everything else.

In:    what a command has to say, as a document.
Out:   `document` writes it to stdout. Inside `documents_alone`, whatever else is written to stdout, by this process, by
       C++ code or by processes that it starts, goes to stderr.
Never: writes anything of its own.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO

_kept: TextIO | None = None
"""The real stdout, while `sys.stdout` is stderr."""


def document(text: str) -> None:
    """Write `text` and a line feed to stdout at once."""
    out = _kept or sys.stdout
    out.write(f"{text}\n")
    out.flush()


@contextlib.contextmanager
def documents_alone() -> Iterator[None]:
    """Until the block ends, stdout is stderr, except to `document`."""
    global _kept
    if _kept is not None:
        yield
        return
    with _real_stdout() as _kept, contextlib.redirect_stdout(sys.stderr):
        try:
            yield
        finally:
            _kept.flush()
            _kept = None


@contextlib.contextmanager
def _real_stdout() -> Iterator[TextIO]:
    """Stdout as it was. Its descriptor is that of stderr until the block ends, so that C++ code and other processes,
    which don't know `sys.stdout`, are redirected, too."""
    ours = sys.stdout
    out, errors = _number(ours), _number(sys.stderr)
    if out is None or errors is None:  # a test's, in memory
        yield ours
        return
    ours.flush()
    kept = open(os.dup(out), "w", encoding=ours.encoding, errors=ours.errors)  # noqa: SIM115 (closed below)
    os.dup2(errors, out)
    try:
        yield kept
    finally:
        ours.flush()  # what was written to it meanwhile is for stderr
        os.dup2(kept.fileno(), out)
        with contextlib.suppress(BrokenPipeError):
            kept.close()


def _number(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (AttributeError, OSError, ValueError):
        return None


def forget_stdout() -> None:
    """Nobody reads stdout any more: what is still in its buffer goes nowhere, instead of failing when Python ends."""
    number = _number(sys.stdout)
    if number is not None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
