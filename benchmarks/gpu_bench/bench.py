# SPDX-License-Identifier: Apache-2.0
"""What each part is given, and how steps are timed: interleaved, so that a slow moment slows all alike.

In:    a device, sizes, where rows go; steps by name.
Out:   rows, kept at once, so that a part that is stopped has given what it had; seconds of each repetition.
Never: times the first step, which compiles; lets one variant that fails end the others.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gpu_bench.device import Device
from gpu_bench.results import Failure, Row
from gpu_bench.sizes import Sizes

LEAST = 3
"""Repetitions, however little time is left."""
REASON = 400
"""Characters of an error that are kept."""


@dataclass(frozen=True)
class Bench:
    """See the module's contract."""

    device: Device
    sizes: Sizes
    keep: Callable[[Row], None]
    folder: Path
    """For files that are not rows."""
    end: float
    """By `time.monotonic`: what has not begun by then is left out."""
    seconds: float
    """From the beginning to that."""

    def left(self) -> float:
        """Fraction of the time."""
        return max(0.0, self.end - time.monotonic()) / self.seconds

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """An error in the block becomes a row, and the part goes on."""
        try:
            yield
        except Exception as error:  # a part is to show as much as it can
            traceback.print_exc()
            self.keep(Failure(what, f"{type(error).__name__}: {str(error)[:REASON]}"))

    def timed(self, run: Callable[[], object]) -> float:
        """Seconds from a moment at which nothing runs to the next one."""
        self.device.settle()
        start = time.perf_counter()
        run()
        self.device.settle()
        return time.perf_counter() - start

    def interleaved(self, runs: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
        """Seconds of each run, in rounds; fewer rounds than wanted if time runs out."""
        for run in runs.values():
            run()
        found: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(max(self.sizes.repetitions, LEAST)):
            if number >= LEAST and not self.left():
                break
            for name, run in runs.items():
                found[name].append(self.timed(run))
        return found
