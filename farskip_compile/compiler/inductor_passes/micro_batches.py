# SPDX-License-Identifier: Apache-2.0
"""The batch in parts, cut before differentiation: refused, or logged, where it can't be cut or proved (`cut_copy`)."""

from __future__ import annotations

from collections.abc import Collection

from torch import fx

from farskip_compile.compiler.inductor_passes.cut_copy import cut_copy, leave_whole, place_of
from farskip_compile.errors import VerificationError
from farskip_compile.passes.pieces.rules import NotSeparableError
from farskip_compile.verify.tokens import verify_tokens

NAME = "micro_batches"
"""The name of the pass."""
HINT = "strict=False leaves it whole, and micro_batches=1; pieces=2 cuts the exchanges alone"


def cut_in_micro_batches(module: fx.GraphModule, parts: int, skip: Collection[str], *, strict: bool) -> None:
    """Cut the batch of a Dynamo graph.

    Raises:
        UnsupportedPatternError: it can't be cut, or that the parts compute the same can't be shown.
    """
    if parts == 1 or NAME in skip:
        return
    try:
        cut_copy(module, NAME, verify_tokens, unless=lambda _: False, parts=parts)
    except (NotSeparableError, VerificationError) as error:
        refusal = f"the batch can't be cut in {parts} parts: {error.reason}"
        leave_whole(refusal, f"the batch stays whole: {error.reason}", HINT, place_of(error), strict=strict)
