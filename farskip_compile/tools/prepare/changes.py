# SPDX-License-Identifier: Apache-2.0
"""What `prepare` did, and the way back.

Contract: plain records. A `Change` says what was set, from what to what, and why; a `Preparation` is all of them, in
the order in which they were made, with notes about what was left as it is. `undo` restores in reverse order, once.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

WIDTH = 80


def named(modules: list[str]) -> str:
    """The first of them, and how many more."""
    first = modules[0] or "the model itself"
    return first if len(modules) == 1 else f"{first} and {len(modules) - 1} more"


@dataclass(frozen=True)
class Left:
    """Loops over experts that stay, and why."""

    names: tuple[str, ...]
    """Of the modules."""
    reason: str

    def without(self, names: Iterable[str]) -> Left:
        """The same for fewer modules."""
        return Left(tuple(name for name in self.names if name not in names), self.reason)

    def __str__(self) -> str:
        return f"loop over experts in {named(list(self.names))}: {self.reason}"


def joined(left: Iterable[Left]) -> list[Left]:
    """One for all modules with the same reasons."""
    reasons: dict[str, list[str]] = {}
    for one in left:
        for name in one.names:
            reasons.setdefault(name, []).append(one.reason)
    names: dict[str, list[str]] = {}
    for name, why in reasons.items():
        names.setdefault("; ".join(why), []).append(name)
    return [Left(tuple(those), why) for why, those in names.items()]


@dataclass(frozen=True)
class Change:
    """One thing that `prepare` set."""

    what: str
    """The setting, or the part of the model."""
    before: str
    """As it was."""
    after: str
    """As it is now."""
    why: str
    """What the compiler could not do before."""
    restore: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)
    """Puts `before` back."""

    def __str__(self) -> str:
        parts = [_wrapped(f"    {name:<8}", getattr(self, name), 12) for name in ("before", "after", "why")]
        return "\n".join([_wrapped("* ", self.what), *parts])


@dataclass(frozen=True)
class Preparation:
    """The result of `prepare`; `print` it."""

    changes: tuple[Change, ...] = ()
    """What was set, in this order."""
    notes: tuple[str, ...] = ()
    """What was left as it is although it may stand in the way, and why."""
    _undone: list[bool] = field(default_factory=list, repr=False, compare=False)

    def undo(self) -> None:
        """Put everything back, the last change first. A second call does nothing."""
        if self._undone:
            return
        self._undone.append(True)
        for change in reversed(self.changes):
            change.restore()

    def __str__(self) -> str:
        blocks = [str(change) for change in self.changes] or ["nothing had to be changed"]
        blocks += [_wrapped("* left alone: ", note) for note in self.notes]
        return "\n".join(blocks)


def _wrapped(label: str, text: str, indent: int = 2) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=label, subsequent_indent=" " * indent)
