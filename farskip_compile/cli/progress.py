# SPDX-License-Identifier: Apache-2.0
"""What a command is doing, for work that takes more than a few seconds.

In:    the console for stderr; what is being done, in a few words, as it goes on.
Out:   on a terminal one line at its bottom with a spinner and a clock, gone when the work is done. In a file, in a pipe
       and on a terminal that can't move its cursor: a line for each step, and another one whenever a step has been
       silent for long, as the first compile of a model is (`Heartbeat`).
Never: writes to stdout; draws bars where nobody looks.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from farskip_compile.cli.terminal import Terminal
from farskip_compile.text_utils import printable

if TYPE_CHECKING:
    from rich.progress import Progress


UNSHOWN, SILENT, LONGEST = 5.0, 30.0, 600.0
"""Seconds until a step that was not shown is; until a shown one is said to go on; and at most between two such lines,
each of which comes after twice the time of the one before."""


class Heartbeat:
    """A thread that prints a line whenever a step has shown nothing for a while. Thread-safe.

    `farskip simulate big | tee log` prints `big on 8 x h100` after 5 seconds, and `big on 8 x h100: 35 s so far` after
    another 30.
    """

    def __init__(self, console: Terminal) -> None:
        self._console = console
        self._changed = threading.Condition()
        self._step, self._shown, self._began, self._pause = "", True, 0.0, SILENT
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="farskip-heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()

    def begin(self, step: str, *, shown: bool = True) -> None:
        """Begin to wait anew: `step` begins, or has shown something."""
        with self._changed:
            self._step, self._shown, self._began = step, shown, time.monotonic()
            self._pause = SILENT if shown else UNSHOWN
            self._changed.notify()

    def again(self) -> None:
        """Begin to wait anew: the step of before has shown something."""
        self.begin(self._step)

    def _run(self) -> None:
        with self._changed:
            while not self._ended:
                if self._changed.wait(self._pause if self._step else None) or self._ended:
                    continue
                line = f"{self._step}: {time.monotonic() - self._began:.0f} s so far" if self._shown else self._step
                self._pause = min(2 * self._pause, LONGEST) if self._shown else SILENT
                self._shown = True
                self._console.print(line, style="dim", soft_wrap=True)


class ProgressBar:
    """What is shown while it is going on. Any thread may call it."""

    def __init__(self, console: Terminal, bar: Progress | None, heart: Heartbeat | None = None) -> None:
        self._console, self._bar, self._heart = console, bar, heart
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
                if self._heart is not None:
                    self._heart.begin(step)
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
def working(step: str = "", *, quiet: bool = False) -> Iterator[ProgressBar]:
    """Show that something goes on until the block ends.

    Args:
        step: what it begins with. In a file this one is shown if it takes long: a command of a single short step says
            nothing there.
        quiet: show nothing at all.
    """
    console = Terminal(stderr=True, quiet=quiet)
    if quiet:
        yield ProgressBar(console, None)
        return
    if not _redraws(console):
        with Heartbeat(console) as heart:
            heart.begin(step, shown=False)
            yield ProgressBar(console, None, heart)
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        work = ProgressBar(console, bar)
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
        with Heartbeat(console) as heart:
            work = ProgressBar(console, None, heart)
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
