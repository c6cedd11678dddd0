"""What is measured, and how much time that may take.

Contract: plain numbers, equal on every rank; nothing is measured here. The sizes of a grid follow from the kind of
device and from whether the budget is small; the budget decides how often each point is repeated.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from farskip_compile.errors import ConfigError

Axes = tuple[tuple[int, ...], ...]
QUICK_SECONDS = 20.0
"""A budget below this measures fewer points."""
LEAST, MOST = 3, 15
"""Repetitions of one point."""


@dataclass(frozen=True)
class Grids:
    """Sizes to measure. Shapes as in `costs.Curves`; sizes of memory and messages in bytes."""

    matmul: Axes
    attention: Axes
    grouped: Axes
    heads: int
    """Of an attention: enough to fill the device."""
    groups: int
    memory: tuple[int, ...]
    strided: tuple[int, ...]
    fresh: tuple[int, ...]
    """Sizes of new buffers; empty where the allocator keeps what it has."""
    messages: tuple[int, ...]


def grids(device: torch.device, *, quick: bool) -> Grids:
    """The sizes for a kind of device."""
    kilo, mega = 2**10, 2**20
    if device.type == "cpu":
        return Grids(
            matmul=((1, 16, 128, 1024), (64, 256, 1024), (8, 64, 256, 1024))
            if quick
            else ((1, 4, 16, 64, 256, 1024), (32, 64, 128, 512, 2048), (8, 64, 256, 1024, 4096)),
            attention=((1, 128, 512), (128, 512), (64,)) if quick else ((1, 64, 256, 1024), (64, 256, 1024), (64, 128)),
            grouped=((16, 128, 512), (256,), (256,)) if quick else ((4, 32, 256, 1024), (256, 1024), (256, 1024)),
            heads=4,
            groups=4,
            memory=tuple(2**power for power in range(16, 29, 3 if quick else 2)),
            strided=(mega, 16 * mega) if quick else (mega // 2, 2 * mega, 16 * mega),
            fresh=(24 * mega, 40 * mega) if quick else (24 * mega, 40 * mega, 128 * mega),
            messages=tuple(kilo * 4**power for power in range(0, 8, 2 if quick else 1)),
        )
    return Grids(
        matmul=((1, 128, 2048), (128, 1024, 8192), (128, 1024, 8192))
        if quick
        else ((1, 16, 128, 1024, 8192), (64, 512, 2048, 8192), (64, 512, 2048, 8192)),
        attention=((1, 1024), (1024,), (128,)) if quick else ((1, 128, 1024, 4096), (128, 1024, 4096), (64, 128)),
        grouped=((128, 1024), (2048,), (2048,)) if quick else ((16, 128, 1024, 4096), (1024, 4096), (1024, 4096)),
        heads=32,
        groups=8,
        memory=tuple(2**power for power in range(18, 31, 4 if quick else 2)),
        strided=(16 * mega, 256 * mega) if quick else (mega, 16 * mega, 64 * mega, 256 * mega),
        fresh=(),
        messages=tuple(kilo * 4**power for power in range(0, 10, 2 if quick else 1)),
    )


class Budget:
    """Shares a time out among the points that are still to be measured.

    Args:
        seconds: for all of them.
        points: how many.
        clock: seconds since some moment.
    """

    def __init__(self, seconds: float, points: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._end = clock() + seconds
        self._points = points

    def repetitions(self, once: float) -> int:
        """How often a point whose call takes `once` seconds is measured; counts the point as done."""
        share = max(self._end - self._clock(), 0.0) / max(self._points, 1)
        self._points -= 1
        return max(LEAST, min(MOST, int(share / max(once, 1e-9))))


def check_budget(seconds: float) -> float:
    """`seconds`, if it is a time.

    Raises:
        ConfigError: it is not.
    """
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"budget_seconds={seconds!r} is no time", way_out="give seconds above 0; 45 is the default")
    return float(seconds)
