# SPDX-License-Identifier: Apache-2.0
"""The error for a model that is about to run in its original wiring, or with `strict=False` one warning for each model.

Contract: `report_original_wiring` raises, or warns and counts, and leaves a note for `farskip status`; it changes no
module. `as_written` returns the count, for `status`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import nn

from farskip_compile.compiler.guard.activity import is_on_purpose
from farskip_compile.errors import FarSkipWarning, OriginalWiringError
from farskip_compile.records.process_file import note_failure
from farskip_compile.records.record import standing_failures
from farskip_compile.records.registry import COMPILES


@dataclass
class AsWritten:
    """The calls of one module that ran in its original wiring, though it was compiled to run rewired."""

    calls: int
    reason: str
    """The reason of the last call."""


_as_written: WeakKeyDictionary[nn.Module, AsWritten] = WeakKeyDictionary()


def as_written(module: nn.Module) -> AsWritten | None:
    """Return the calls of `module` that ran in its original wiring since its last compile, or None if none is known."""
    return _as_written.get(module) if _is_noted(module) else None


def _is_noted(module: nn.Module) -> bool:
    """Return whether the registry holds that `module` runs as it is written, and no compile of it since."""
    owner = COMPILES.owner_number(module)
    failures = standing_failures(COMPILES.records())
    return any(one.kind == "stopped" and one.owner == owner for one in failures)


def report_original_wiring(module: nn.Module, reason: str, way_out: str, *, strict: bool) -> None:
    """Raise, or warn once for each module: `module` is about to run in its original wiring.

    Args:
        module: the module.
        reason: the text of the error or warning.
        way_out: the hint.
        strict: True to raise.

    Raises:
        OriginalWiringError: `strict` is true.
    """
    if is_on_purpose():
        return
    error = OriginalWiringError(reason, way_out=way_out)
    if strict:
        note_failure("error", error, module)
        raise error
    known, is_noted = _as_written.get(module), as_written(module) is not None
    _as_written[module] = AsWritten(known.calls + 1 if known is not None else 1, reason)
    if not is_noted:
        note_failure("stopped", error, module)
    if known is None:
        warnings.warn(f"{reason}\n  way out: {way_out}", FarSkipWarning, stacklevel=4)
