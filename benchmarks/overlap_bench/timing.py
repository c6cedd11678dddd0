"""Timing of several callables in turn, so that a slow moment slows all alike.

Contract: every rank makes the same calls. Times are seconds of this rank, from a barrier to the end of the call.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist


def interleaved(runs: Mapping[str, Callable[[], Any]], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each run; all take turns, and who is first changes."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    gc.collect()
    gc.disable()
    for repetition in range(repetitions):
        shift = repetition % len(names)
        for name in names[shift:] + names[:shift]:
            dist.barrier()
            start = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - start)
    gc.enable()
    return seconds


def processor_seconds() -> tuple[float, float, float]:
    """So far: by the clock, of this process, of all processes of the machine; user time only, on all cores."""
    machine = 0.0
    with contextlib.suppress(OSError):  # not Linux
        user, nice = Path("/proc/stat").read_text().split()[1:3]
        machine = (int(user) + int(nice)) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), os.times().user, machine
