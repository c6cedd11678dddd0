# SPDX-License-Identifier: Apache-2.0
"""Estimates of the cost of operators and collectives, without running anything.

Contract: pure functions of a graph and a hardware profile. Nothing is run, measured or sent, so all ranks that use one
profile come to the same numbers. Start reading at `operators.py`, then `collectives.py` and `profile.py`.
"""

from __future__ import annotations

from farskip_compile.costs.collectives import collective_seconds
from farskip_compile.costs.curves import Curve, Curves
from farskip_compile.costs.profile import (
    Efficiency,
    HardwareProfile,
    Link,
    PeakFlops,
    PerCollective,
    default_profile,
    load_profile,
    profiles,
)

__all__ = [
    "Curve",
    "Curves",
    "Efficiency",
    "HardwareProfile",
    "Link",
    "PeakFlops",
    "PerCollective",
    "collective_seconds",
    "default_profile",
    "load_profile",
    "profiles",
]
