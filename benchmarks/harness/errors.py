# SPDX-License-Identifier: Apache-2.0
"""Every error that the harness raises on purpose: what happened, why, and the way out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class HarnessError(RuntimeError):
    """Base class.

    Args:
        reason: what is wrong, one sentence.
        way_out: what the user can do about it.
    """

    def __init__(self, reason: str, *, way_out: str = "") -> None:
        self.reason = reason
        self.way_out = way_out
        super().__init__(f"{reason}\n  way out: {way_out}" if way_out else reason)


class QuantityError(HarnessError, ValueError):
    """A rate, a delay or a number of hosts that can't be parsed or is out of range."""


class NetworkUnavailableError(HarnessError):
    """Network namespaces with limited links are not available on this machine or to this user."""


class TeardownError(HarnessError):
    """Parts of a network could not be removed; the message names them."""


@dataclass(frozen=True)
class Failure:
    """How one rank failed."""

    rank: int
    how: str
    """For example `exit status 1`, `killed by SIGSEGV`, `still running after 60 s`."""
    lines: tuple[str, ...]
    """The last lines that it printed."""

    def __str__(self) -> str:
        shown = [f"    {line}" for line in self.lines] or ["    (it printed nothing)"]
        return "\n".join([f"rank {self.rank}: {self.how}; its last lines:", *shown])


class RankError(HarnessError):
    """One or more ranks failed; the others were killed. `failures` are in order of occurrence."""

    def __init__(self, failures: Sequence[Failure]) -> None:
        self.failures = tuple(failures)
        super().__init__("\n".join(map(str, failures)))


class RankFailedError(RankError):
    """A rank ended with an error, or without a result."""


class RankTimeoutError(RankError):
    """One or more ranks did not end in time."""
