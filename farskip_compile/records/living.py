# SPDX-License-Identifier: Apache-2.0
"""Is a process still there? Of this machine by its number and when it began, of another one by a sign of life.

In:    what a process wrote about itself (`here`), and the file that it wrote.
Out:   `Life`; the time by the clock of the file system, which is the same for all hosts that see it.
Never: compares clocks of two hosts; asks about a number whose process may be another one by now, or in another space
       of numbers (a container).

A process is named by where it runs (`place`: this boot of this kernel, this space of process numbers), its number, and
when it began, in ticks of that boot. Where the system has no /proc, `place` is the name of the host, and the number
alone is asked about.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import secrets
from enum import StrEnum
from pathlib import Path

BEAT = 10.0
"""Seconds between two signs of life: the process touches its file."""
SILENT_AFTER = 120.0
"""Seconds without one after which a process of another place counts as gone."""
GONE = "ZX"
"""States in /proc of a process that has ended, and whose parent has not asked for its status yet."""


class Life(StrEnum):
    """The signs of a process that is there or not."""

    ALIVE = "alive"
    ENDED = "ended"
    SILENT = "no sign of life"
    """A process elsewhere that has not touched its file for `SILENT_AFTER` seconds."""
    UNKNOWN = "not known to live"
    """A process elsewhere, in a folder that can't be written, so that the clock of its file system is not known."""


def place() -> str:
    """Return this boot of this kernel and this space of process numbers, as a short hash."""
    facts = [platform.node()]
    with contextlib.suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        facts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]


def started(pid: int) -> str:
    """Return when process `pid` of this place began; empty: there is no such process.

    The form tells the process from an earlier one with the same number.
    """
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state in GONE else rest[18]
    except (OSError, IndexError, ValueError):
        pass
    if Path("/proc/self/stat").exists():
        return ""
    try:
        os.kill(pid, 0)  # nothing is sent
    except (ProcessLookupError, OverflowError):
        return ""
    except OSError:  # somebody else's
        pass
    return "some time"


def clock_of(folder: Path) -> float | None:
    """Return the time by the clock of the file system of `folder`; None: nothing can be written there."""
    probe = folder / f".clock.{secrets.token_hex(8)}.writing"
    try:
        with probe.open("xb"):
            return probe.stat().st_mtime
    except OSError:
        return None
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def life_of(at: str, pid: int, began: str, sign: float, clock: float | None) -> Life:
    """Return the signs of a process that is there or not.

    Args:
        at: its `place`.
        pid: its number there.
        began: when it began, as `started` says.
        sign: when it touched its file last, by the clock of the file system.
        clock: the time now by that clock.
    """
    if at == place():
        return Life.ALIVE if began and started(pid) == began else Life.ENDED
    if clock is None:
        return Life.UNKNOWN
    return Life.ALIVE if clock - sign <= SILENT_AFTER else Life.SILENT
