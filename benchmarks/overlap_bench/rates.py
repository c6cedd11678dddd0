"""The rate of the network at which communication takes as long as it is to.

Contract: `find_rate` measures at most three rates, each in the range that a link can have, and returns the last. gloo
does not fill the link, so the first guess is corrected by what it reached.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness.quantities import FASTEST, SLOWEST

TRIES = 3
CLOSE = 0.05
"""Part by which the time may be off."""


@dataclass(frozen=True)
class Probe:
    """Communication alone at one rate."""

    rate: float
    """Bits per second."""
    seconds: float
    network: dict[str, Any]
    """What the network is now: `rate` (None: no limit could be set), `text`."""


def find_rate(wanted: float, sent: float, measured: Callable[[float], Probe]) -> Probe:
    """A rate at which communication takes `wanted` seconds.

    Args:
        wanted: seconds.
        sent: bytes that leave the busiest rank.
        measured: sets a rate, and measures at it.
    """
    rate = 8 * sent / wanted
    for _ in range(TRIES):
        rate = round(min(max(rate, SLOWEST), FASTEST) / 1e6) * 10**6  # whole Mbit/s
        probe = measured(rate)
        if abs(probe.seconds / wanted - 1) < CLOSE or probe.network["rate"] is None:
            break
        rate *= probe.seconds / wanted
    return probe
