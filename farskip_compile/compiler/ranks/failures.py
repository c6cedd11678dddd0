# SPDX-License-Identifier: Apache-2.0
"""Notes of failed ranks in the store, so that ranks that wait for them raise at once.

Contract: `report_failure` goes around everything that other ranks may wait for: compiling, and comparing collectives at
the first run of a graph. It hides no error, delays none, and never waits; without a process group it does nothing. A
rank that is waiting calls `failure_among`. A rank that is killed leaves no note: then the timeout of
the process group ends the wait.

Algorithm. All ranks often fail alike, at a dense model, say, and go on to something else, some of them sooner: a note
about a failure that this rank has had itself must not disturb it. So failures are numbered:
1. a rank that fails writes a note under its next number;
2. a rank that waits heeds only notes with a higher number than its own, takes that number over, and fails too: ranks
   that have failed for one reason are then at the same number again;
3. a rank that begins something new takes its note back.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from farskip_compile._compat.distributed import StoreLost, world_store
from farskip_compile._compat.inner_compile import restarts_analysis

log = logging.getLogger("farskip_compile")

ANY = "farskip/failed"
"""The key that exists once any rank has ever failed; with a rank after it, the key of the note of that rank."""
LONGEST = 2000
"""The largest number of characters of a note."""

_here = threading.local()
_lock = threading.Lock()
_number = 0
"""The number of failures that this process has had, or has taken over from other ranks."""


@contextmanager
def report_failure(what: str) -> Iterator[None]:
    """Leave a note for the other ranks if the block raises: that this rank did `what` ("failed to compile").

    Inside another such block, the outer one leaves the note.
    """
    if getattr(_here, "inside", False):
        yield
        return
    before = _number
    with unreported():
        try:
            if getattr(_here, "noted", False):
                _here.noted = False
                _write("")
            yield
        except BaseException as error:
            if not restarts_analysis(error) and not isinstance(error.__cause__, StoreLost):
                _leave_note(f"{what}: {type(error).__name__}: {error}".removesuffix(": "), before)
            raise


@contextmanager
def unreported() -> Iterator[None]:
    """Leave no notes of failures of this thread inside the block."""
    outer = getattr(_here, "inside", False)
    _here.inside = True
    try:
        yield
    finally:
        _here.inside = outer


def failure_among(ranks: Sequence[int]) -> tuple[int, str] | None:
    """Return one of these global ranks with a failure that this rank has not had, and its note, or None.

    The failure then counts as taken over by this rank.
    """
    global _number
    world = world_store()
    if world is None or not world.has(ANY):
        return None
    for rank in ranks:
        number, _, text = world.get(f"{ANY}/{rank}").partition(" ")
        with _lock:
            if number and int(number) > _number:
                _number = int(number)
                return rank, text
    return None


def _leave_note(text: str, before: int) -> None:
    global _number
    with _lock:
        number = max(_number, before + 1)  # higher already: another rank's failure was taken over meanwhile
        if _write(f"{number} {text[:LONGEST]}"):
            _number = number
            _here.noted = True


def _write(note: str) -> bool:
    """Write this rank's note, if there is a store. An error of the store must not hide the failure itself."""
    try:
        world = world_store()
        if world is None:
            return False
        world.set(f"{ANY}/{world.rank}", note)
        world.set(ANY, "1")
    except Exception as error:
        log.warning("the other ranks can't be notified of a failure of this one: %s", error)
        return False
    return True
