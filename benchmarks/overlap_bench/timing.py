"""Interleaved timing of several callables, so that a slow moment slows all alike.

Contract: every rank makes the same calls. Times are seconds of this rank, from a barrier to the end of the call.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist


def interleaved(
    runs: Mapping[str, Callable[[], Any]], repetitions: int, *, least: int = 0, budget: float = math.inf
) -> dict[str, list[float]]:
    """Seconds of each run, interleaved; each repetition starts with another one.

    Args:
        runs: by name.
        repetitions: of each, at most.
        least: repetitions made in any case.
        budget: seconds after which no further one is made, by the clock of rank 0, so that all ranks stop together.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    gc.collect()
    gc.disable()
    begun = time.perf_counter()
    for repetition in range(repetitions):
        if repetition >= least and budget < math.inf:
            over = [time.perf_counter() - begun > budget]
            dist.broadcast_object_list(over, src=0)
            if over[0]:
                break
        shift = repetition % len(names)
        for name in names[shift:] + names[:shift]:
            dist.barrier()
            start = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - start)
    gc.enable()
    return seconds


def processor_seconds() -> tuple[float, float, float]:
    """Wall time, and user time so far of this process and of all processes of the machine, on all cores."""
    machine = 0.0
    with contextlib.suppress(OSError):  # not Linux
        user, nice = Path("/proc/stat").read_text().split()[1:3]
        machine = (int(user) + int(nice)) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), os.times().user, machine
