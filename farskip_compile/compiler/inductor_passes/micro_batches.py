# SPDX-License-Identifier: Apache-2.0
"""The batch in parts: cut before differentiation, verified; refused, or said, where it can't be.

In:    the module of a Dynamo graph, rewired or not; in how many parts.
Out:   its graph, cut.
Never: takes a cut that is not shown to compute the same: a copy is cut, and takes the graph's place once verified.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import fx

from farskip_compile.compiler.inductor_passes.in_pieces import log
from farskip_compile.errors import UnsupportedPatternError, VerificationError
from farskip_compile.passes import PASSES
from farskip_compile.passes.contract import Stage
from farskip_compile.passes.driver import Driver
from farskip_compile.passes.graph import user_calls
from farskip_compile.passes.graph.graph_snapshot import GraphSnapshot
from farskip_compile.passes.pieces.rules import NotSeparableError
from farskip_compile.verify.tokens import verify_tokens

NAME = "micro_batches"
"""Of the pass."""


def cut_in_micro_batches(module: fx.GraphModule, parts: int, skip: Collection[str], *, strict: bool) -> None:
    """Cut the batch of a Dynamo graph.

    Raises:
        UnsupportedPatternError: it can't be cut, or that the parts compute the same can't be shown.
    """
    if parts == 1 or NAME in skip:
        return
    before = GraphSnapshot(module.graph)
    twin = before.restore()
    twin.owning_module = module
    others = {one.name for one in PASSES if one.stage is Stage.REWIRED} - {NAME}
    driver = Driver(PASSES, Stage.REWIRED, {"graph": twin, "parts": parts}, others)
    try:
        driver.run()
        driver.verify(verify_tokens, twin, before)
        driver.finish()
    except (NotSeparableError, VerificationError) as error:
        where = user_calls.where(error.node) if isinstance(error, NotSeparableError) else error.where
        if strict:
            raise UnsupportedPatternError(
                f"the batch can't be cut in {parts} parts: {error.reason}",
                way_out="strict=False leaves it whole, and micro_batches=1; pieces=2 cuts the exchanges alone",
                where=where,
            ) from error
        log.warning("the batch stays whole: %s", error.reason)
        return
    module.graph = twin
