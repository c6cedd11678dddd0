# SPDX-License-Identifier: Apache-2.0
"""The record of what `prepare` did, and the way back.

Contract: plain records. A `Change` says what was set, from what to what, and why; a `Preparation` is all of them, in
the order in which they were made, with notes about what was left as it is. `undo` restores in reverse order, once.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

from torch import nn

WIDTH = 80


def named(modules: Sequence[str]) -> str:
    """Return the name of the first module, and how many more there are."""
    first = modules[0] or "the model itself"
    return first if len(modules) == 1 else f"{first} and {len(modules) - 1} more"


@dataclass(frozen=True)
class Change:
    """One thing that `prepare` set."""

    what: str
    """The setting, or the part of the model."""
    before: str
    """The value or state before `prepare`."""
    after: str
    """The value or state after `prepare`."""
    why: str
    """The reason: what the compiler could not do before."""
    restore: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)
    """The function that puts `before` back."""

    def __str__(self) -> str:
        parts = [_wrapped(f"    {name:<8}", getattr(self, name), 12) for name in ("before", "after", "why")]
        return "\n".join([_wrapped("* ", self.what), *parts])


@dataclass(frozen=True)
class Preparation:
    """The result of `prepare`; `print` it."""

    changes: tuple[Change, ...] = ()
    """The changes, in the order in which they were made."""
    notes: tuple[str, ...] = ()
    """One text for each thing that was left as it is although it may stand in the way, with the reason."""
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


def install(modules: Sequence[nn.Module], methods: Mapping[str, Callable[..., Any]]) -> Callable[[], None]:
    """Set `methods` on each module itself, as transformers' expert parallelism does. Return what removes them again."""
    for module in modules:
        for name, method in methods.items():
            vars(module)[name] = MethodType(method, module)

    def restore() -> None:
        for module in modules:
            for name in methods:
                vars(module).pop(name, None)

    return restore
