# SPDX-License-Identifier: Apache-2.0
"""Calibration: measurements of the machine at hand, and a hardware profile made from them.

    profile = calibrate()                                   # on every rank of an initialised process group, or on one
    profile = calibrate_link(profile, group)                # the network has changed: measure it alone
    torch.compile(model, backend="farskip", options={"profile": profile})

`farskip calibrate FILE` does the same from the command line, under torchrun or alone. Start reading at `main.py`;
`costs/` says what the figures mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from farskip_compile.measure.calibrate.findings import Calibration
from farskip_compile.measure.calibrate.main import calibrate, calibrate_compute, calibrate_link, measure

if TYPE_CHECKING:
    from farskip_compile.measure.calibrate.text import calibration_text

__all__ = [
    "Calibration",
    "calibrate",
    "calibrate_compute",
    "calibrate_link",
    "calibration_text",
    "measure",
]


def __getattr__(name: str) -> Any:
    """Import `calibration_text` when it is asked for: it needs rich, and measuring runs without."""
    if name == "calibration_text":
        from farskip_compile.measure.calibrate.text import calibration_text

        return calibration_text
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
