# SPDX-License-Identifier: Apache-2.0
"""The batch in parts: cut before differentiation, verified; refused, or said, where it can't be.

In:    the module of a Dynamo graph, rewired or not; the configuration.
Out:   its graph, cut.
Never: takes a cut that is not shown to compute the same: a copy is cut, and takes the graph's place once verified.
"""

from __future__ import annotations

from torch import fx

from farskip_compile.compiler.config import Resolved
from farskip_compile.errors import UnsupportedPatternError, VerificationError
from farskip_compile.passes.contract import Stage
from farskip_compile.passes.graph import user_calls
from farskip_compile.passes.pieces.rules import NotSeparableError
from farskip_compile.passes.pieces.tokens.batch import cut_batch
from farskip_compile.passes.runner import log
from farskip_compile.passes.safe_edit import GraphCopy
from farskip_compile.verify.tokens import verify_tokens


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
        where = user_calls.where(error.node) if isinstance(error, NotSeparableError) else error.where
        if config.strict:
            raise UnsupportedPatternError(
                f"the batch can't be cut in {parts} parts: {error.reason}",
                way_out="strict=False leaves it whole, and micro_batches=1; pieces=2 cuts the exchanges alone",
                where=where,
            ) from error
        log.warning("the batch stays whole: %s", error.reason)
