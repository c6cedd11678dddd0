# SPDX-License-Identifier: Apache-2.0
"""The one way to cut a Dynamo graph: cut a copy, prove what it computes, and let it take the graph's place.

In:    the module of a Dynamo graph, rewired or not; the name of the pass that cuts.
Out:   its graph, cut; or as it was, with an error.
Never: takes a cut that is not shown to compute the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch import fx

from farskip_compile.errors import UnsupportedPatternError, VerificationError, Where
from farskip_compile.passes import PASSES
from farskip_compile.passes.contract import Stage
from farskip_compile.passes.driver import Driver
from farskip_compile.passes.graph import user_calls
from farskip_compile.passes.graph.graph_snapshot import GraphSnapshot
from farskip_compile.passes.pieces.rules import NotSeparableError

log = logging.getLogger("farskip_compile")

Proof = Callable[[fx.Graph, GraphSnapshot], object]
CutError = NotSeparableError | VerificationError
"""Why a copy was thrown away: it can't be cut, or the cut is not proved."""
LEAVE_WHOLE = 'pieces="auto" or strict=False leave it whole, pieces=1 all of them'


def cut_copy(module: fx.GraphModule, name: str, proof: Proof, *, unless: Callable[[Any], bool], **facts: Any) -> Any:
    """Cut a copy of the graph of `module`, which takes its place once it is proved. Return what the pass provides.

    Args:
        module: of a Dynamo graph.
        name: of the pass.
        proof: compares the copy with the graph as it was.
        unless: given what the pass provides, returns whether it has changed nothing; then the graph stays.
        facts: what the pass takes besides the graph.

    Raises:
        NotSeparableError: the graph can't be cut.
        VerificationError: that the cut graph computes the same is not proved.
    """
    before = GraphSnapshot(module.graph)
    twin = before.restore()
    twin.owning_module = module
    others = {one.name for one in PASSES if one.stage is Stage.REWIRED} - {name}
    driver = Driver(PASSES, Stage.REWIRED, {"graph": twin, **facts}, others)
    driver.run()
    (provided,) = next(one.provides for one in PASSES if one.name == name)
    result = driver.facts[provided]
    if not unless(result):
        driver.verify(proof, twin, before)
        driver.finish()
        module.graph = twin
    return result


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
