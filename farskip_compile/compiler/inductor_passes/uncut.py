# SPDX-License-Identifier: Apache-2.0
"""The decision on an exchange, or a batch, that stays whole although pieces were asked for: an error, or a log line."""

from __future__ import annotations

from farskip_compile.errors import UnsupportedPatternError, VerificationError, Where
from farskip_compile.passes.graph import user_calls
from farskip_compile.passes.pieces.rules import NotSeparableError
from farskip_compile.passes.runner import log

CutError = NotSeparableError | VerificationError
"""Why a copy was thrown away: it can't be cut, or the cut is not proved."""
LEAVE_WHOLE = 'pieces="auto" or strict=False leave it whole, pieces=1 all of them'


def place_of(error: CutError) -> Where:
    """Return where in the user's code a cut failed."""
    if isinstance(error, NotSeparableError):
        return user_calls.where(error.node)
    return error.where or Where()


def leave_whole(refusal: str, warning: str, hint: str, where: Where, *, strict: bool) -> None:
    """Log that something stays whole that was to be cut.

    Raises:
        UnsupportedPatternError: `strict` is set.
    """
    if strict:
        raise UnsupportedPatternError(refusal, way_out=hint, where=where)
    log.warning("%s", warning)
