# SPDX-License-Identifier: Apache-2.0
"""A model is about to run in its original wiring: an error, or with `strict=False` one warning for each model.

Contract: `original_wiring` raises or warns; it changes nothing but a mark on the module that has warned.
"""

from __future__ import annotations

import warnings

from torch import nn

from farskip_compile.errors import FarSkipWarning, OriginalWiringError

WARNED = "farskip_warned"
"""Attribute of a module that has given its warning."""


def original_wiring(module: nn.Module, reason: str, way_out: str, *, strict: bool) -> None:
    """See the module's contract.

    Raises:
        OriginalWiringError: `strict`.
    """
    if strict:
        raise OriginalWiringError(reason, way_out=way_out)
    if not vars(module).get(WARNED, False):
        vars(module)[WARNED] = True
        warnings.warn(f"{reason}\n  way out: {way_out}", FarSkipWarning, stacklevel=4)
