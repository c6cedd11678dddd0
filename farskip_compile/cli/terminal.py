# SPDX-License-Identifier: Apache-2.0
"""The console that every command prints on.

Contract: what is given as a string is text, whatever is in it: no markup of Rich (`[/x]` in the name of a kernel or a
file), no emoji by name. What would do something to a terminal is shown as an escape (`\\x1b`), in strings, in texts and
in the cells of tables alike; only styles that this package chose make control codes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from farskip_compile.text_utils import printable


class Terminal(Console):
    """A console for text that others may have written; `stderr` and `quiet` as for a `Console`."""

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        super().__init__(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """A string as text: escaped before it is measured, so that tables stay straight."""
        return super().render_str(printable(text, lines=True), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Escapes what came as a `Text`, too. Every renderable inside of another one is rendered here."""
        for segment in super().render(renderable, options):
            safe = segment.text if segment.control else printable(segment.text, lines=True)
            yield segment if safe == segment.text else Segment(safe, segment.style)
