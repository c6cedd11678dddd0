# SPDX-License-Identifier: Apache-2.0
"""Estimates of the cost of operators and collectives, without running anything.

Contract: pure functions of a graph and a hardware profile. Nothing is run, measured or sent, so all ranks that use one
profile come to the same numbers. Start reading at `operators.py`, then `collectives.py` and `profile.py`.
"""

from __future__ import annotations

from farskip_compile.costs.collectives import (
    CollectiveCost,
    Sample,
    collective_cost,
    collective_seconds,
    fit_link,
    interference,
    is_launch,
)
from farskip_compile.costs.curves import Curve, Curves
from farskip_compile.costs.operators import OpCost, combine, kernel_cost, op_cost, op_seconds
from farskip_compile.costs.profile import (
    COLLECTIVE_KINDS,
    CollectiveKind,
    Efficiency,
    HardwareProfile,
    Link,
    PeakFlops,
    PerCollective,
    default_profile,
    load_profile,
    profiles,
)
from farskip_compile.costs.sizes import SizeHints

__all__ = [
    "COLLECTIVE_KINDS",
    "CollectiveCost",
    "CollectiveKind",
    "Curve",
    "Curves",
    "Efficiency",
    "HardwareProfile",
    "Link",
    "OpCost",
    "PeakFlops",
    "PerCollective",
    "Sample",
    "SizeHints",
    "collective_cost",
    "collective_seconds",
    "combine",
    "default_profile",
    "fit_link",
    "interference",
    "is_launch",
    "kernel_cost",
    "load_profile",
    "op_cost",
    "op_seconds",
    "profiles",
]
