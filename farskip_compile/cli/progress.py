# SPDX-License-Identifier: Apache-2.0
"""What a command is doing, for work that takes more than a few seconds.

In:    the console for stderr; what is being done, in a few words, as it goes on.
Out:   on a terminal one line at its bottom with a spinner and a clock, gone when the work is done. In a file, in a pipe
       and on a terminal that can't move its cursor: a line for each step.
Never: writes to stdout; draws bars where nobody looks.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from farskip_compile.cli.terminal import Terminal
from farskip_compile.text_utils import printable

if TYPE_CHECKING:
    from rich.progress import Progress


class Work:
    """What is shown while it is going on. Any thread may call it."""

    def __init__(self, console: Terminal, bar: Progress | None) -> None:
        self._console, self._bar = console, bar
        self._task = None if bar is None else bar.add_task("", total=None)
        self._last = ""
        self._lock = threading.RLock()

    def __call__(self, step: str) -> None:
        """`step` begins."""
        with self._lock:
            if step == self._last:
                return
            self._last = step
            if self._bar is None:
                self._console.print(step, style="dim", soft_wrap=True)
            elif self._task is not None:
                self._bar.update(self._task, description=printable(step))

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Take the line away while something else is printed, on stdout for example, which may be the same terminal."""
        with self._lock:
            if self._bar is not None:
                self._bar.stop()
            try:
                yield
            finally:
                if self._bar is not None:
                    self._bar.start()


@contextlib.contextmanager
def working(step: str = "", *, quiet: bool = False) -> Iterator[Work]:
    """Show that something goes on until the block ends.

    Args:
        step: what it begins with. Only a terminal shows this one: a command of a single step says nothing in a file.
        quiet: show nothing at all.
    """
    console = Terminal(stderr=True, quiet=quiet)
    if quiet or not _redraws(console):
        yield Work(console, None)
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        work = Work(console, bar)
        if step:
            work(step)
        yield work


@contextlib.contextmanager
def bars(names: Mapping[str, str]) -> Iterator[Callable[[str, int, int], None]]:
    """Bars on a terminal for work whose parts are counted; elsewhere a line when a part begins.

    Args:
        names: for each part, as the work calls it, what is shown.

    Yields:
        What to call with the part, how much of it is done, and of how much.
    """
    console = Terminal(stderr=True)
    if not _redraws(console):
        work = Work(console, None)
        yield lambda part, done, total: work(f"{names[part]}: {total} steps")
        return
    from rich.progress import Progress

    with Progress(console=console, redirect_stdout=sys.stdout.isatty()) as bar:
        tasks = {}

        def show(part: str, done: int, total: int) -> None:
            if part not in tasks:
                tasks[part] = bar.add_task(names[part], total=total)
            bar.update(tasks[part], completed=done)

        yield show


def _redraws(console: Terminal) -> bool:
    """Whether stderr is a terminal that can draw a line anew. `FORCE_COLOR` makes no terminal of a file."""
    return sys.stderr.isatty() and not console.is_dumb_terminal
