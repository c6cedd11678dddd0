# SPDX-License-Identifier: Apache-2.0
"""The batch in parts, cut before differentiation: refused, or logged, where it can't be cut or proved."""

from __future__ import annotations

from torch import fx

from farskip_compile.compiler.config import Resolved
from farskip_compile.compiler.inductor_passes.uncut import leave_whole, place_of
from farskip_compile.errors import VerificationError
from farskip_compile.passes.contract import Stage
from farskip_compile.passes.pieces.rules import NotSeparableError
from farskip_compile.passes.pieces.tokens.batch import cut_batch
from farskip_compile.passes.safe_edit import GraphCopy
from farskip_compile.verify.tokens import verify_tokens

HINT = "strict=False leaves it whole, and micro_batches=1; pieces=2 cuts the exchanges alone"


def cut_in_micro_batches(module: fx.GraphModule, config: Resolved) -> None:
    """Cut the batch of a Dynamo graph in as many parts as `config` asks for.

    Raises:
        UnsupportedPatternError: it can't be cut, or that the parts compute the same can't be shown.
    """
    parts = config.micro_batches
    if parts == 1 or "micro_batches" in config.disable_passes:
        return
    copy = GraphCopy(module, Stage.REWIRED)
    try:
        copy.passes.apply("micro_batches", cut_batch, copy.graph, parts)
        copy.verify_and_swap(verify_tokens)
    except (NotSeparableError, VerificationError) as error:
        refusal = f"the batch can't be cut in {parts} parts: {error.reason}"
        leave_whole(refusal, f"the batch stays whole: {error.reason}", HINT, place_of(error), strict=config.strict)
