"""Rates and delays, read from text and written as text.

Contract: units are those of `tc`: `mbit` is 10^6 bits per second. `mbps` is refused: `tc` reads it as megabytes per
second, most people don't.
"""

from __future__ import annotations

import math
import re

from harness.errors import QuantityError

SLOWEST, FASTEST = 100_000_000, 10_000_000_000
"""Bits per second: below, runs take long; above, one processor can't saturate a link."""

_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg])?bit(?:/s)?", re.IGNORECASE | re.ASCII)
_FACTOR = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_DELAY = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s)", re.IGNORECASE | re.ASCII)
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def parse_rate(text: str) -> int:
    """Bits per second from `400mbit`, `2.5 Gbit/s`, ...; `QuantityError` if it is not a rate or out of range."""
    match = _RATE.fullmatch(text.strip())
    if match is None:
        raise QuantityError(
            f"{text!r} is not a rate", way_out="write 400mbit or 2.5gbit: bits per second, powers of ten"
        )
    rate = round(float(match[1]) * _FACTOR[(match[2] or "").lower()])
    return check_rate(rate)


def check_rate(rate: int) -> int:
    """The same rate, if a link can have it."""
    if not SLOWEST <= rate <= FASTEST:
        raise QuantityError(f"a link has {format_rate(SLOWEST)} to {format_rate(FASTEST)}, not {format_rate(rate)}")
    return rate


def format_rate(rate: float | None) -> str:
    """`400 Mbit/s`, `2.5 Gbit/s`; None is `no limit`."""
    if rate is None:
        return "no limit"
    unit = next((unit for unit in ("g", "m", "k") if rate >= _FACTOR[unit]), "")
    digits = f"{rate / _FACTOR[unit]:.4g}"
    return f"{digits} {unit.upper() if unit != 'k' else unit}bit/s"


def parse_delay(text: str) -> float:
    """Seconds from `500us` or `1.5ms`; positive, at most one second."""
    match = _DELAY.fullmatch(text.strip())
    if match is None:
        raise QuantityError(f"{text!r} is not a delay", way_out="write 500us or 1.5ms")
    seconds = float(match[1]) * _SECONDS[match[2].lower()]
    if not (0.0 < seconds <= 1.0 and math.isfinite(seconds)):
        raise QuantityError(f"a delay is positive and at most 1 s, not {text}")
    return seconds
