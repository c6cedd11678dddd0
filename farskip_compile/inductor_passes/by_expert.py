"""Exchanges without drops in pieces: how many, cut before differentiation, verified, and what stays whole said.

In:    a Dynamo graph, rewired or not; the plan.
Out:   the graph, cut in place.
Never: decides by anything that ranks do not share: "auto" takes the number of pieces with the least estimated time of
       the chain dispatch, experts, combine, from the sizes in the graph and the profile.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import partial
from itertools import chain

import torch
from torch import fx

from farskip_compile.config import Pieces
from farskip_compile.costs.collectives import collective_seconds
from farskip_compile.costs.profile import HardwareProfile
from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.inductor_passes.in_pieces import CHOICES, WORTH, log
from farskip_compile.passes import PASSES
from farskip_compile.passes.contract import Stage
from farskip_compile.passes.driver import Driver
from farskip_compile.passes.graph import ops
from farskip_compile.passes.graph.graph_snapshot import GraphSnapshot
from farskip_compile.passes.graph.walk import spread, walk_back
from farskip_compile.passes.pieces.blocks import Exchanges
from farskip_compile.verify.blocks import verify_blocks

NAME = "pieces_by_expert"


def cut_by_expert(
    graph: fx.Graph, pieces: Pieces, skip: Collection[str], profile: HardwareProfile, *, strict: bool
) -> None:
    """Cut the exchanges of a Dynamo graph whose sizes data decides, in place.

    Raises:
        UnsupportedPatternError: one of them can't be cut in the number of pieces that was asked for.
        VerificationError: what was cut does not compute the same.
    """
    if pieces == 1 or NAME in skip:
        return
    before = GraphSnapshot(graph)
    how_many = partial(_cheapest, profile) if pieces == "auto" else lambda _: pieces
    driver = Driver(PASSES, Stage.REWIRED, {"graph": graph, "how_many": how_many})
    driver.run()
    driver.verify(verify_blocks, graph, before)
    driver.finish()
    for refused in driver.facts["stay_whole"] if pieces != "auto" else ():
        if strict:
            raise UnsupportedPatternError(
                f"an exchange whose sizes data decides can't be cut in {pieces} pieces: {refused.reason}",
                way_out='pieces="auto" or strict=False leave it whole, pieces=1 all of them',
                where=ops.where(refused.node),
            )
        log.warning("an exchange stays whole: %s", refused)


def _cheapest(profile: HardwareProfile, exchanges: Exchanges) -> int:
    """The number of pieces with the least estimated time, more only where they save `WORTH`."""
    first = exchanges.members[0].launch
    sent, ranks = ops.tensor(first.args[0]), len(exchanges.sent)  # type: ignore[arg-type]
    assert sent is not None
    rows: int | torch.SymInt = sent.shape[0]
    if not isinstance(rows, int):
        return 1  # ranks may have compiled for different numbers of tokens
    bytes_sent = rows * math.prod(sent.shape[1:]) * sent.dtype.itemsize
    experts = _seconds_between(exchanges, rows, str(sent.dtype).removeprefix("torch."), profile)

    def seconds(pieces: int) -> float:
        one = collective_seconds("all_to_all", math.ceil(bytes_sent / pieces), ranks, profile)
        return max(2 * pieces * one, 2 * one + experts)

    best = 1
    for pieces in CHOICES:
        if pieces <= exchanges.experts and seconds(pieces) < seconds(best) * (1 - WORTH):
            best = pieces
    return best


def _seconds_between(exchanges: Exchanges, rows: int, dtype: str, profile: HardwareProfile) -> float:
    """Of the products between dispatch and combine, if each expert gets its share of as many rows as are sent."""
    arriving = set(chain.from_iterable(one.blocks for one in exchanges.members if one.to_experts))
    leaving = chain.from_iterable(one.blocks for one in exchanges.members if not one.to_experts)
    after = spread(next(iter(arriving)).graph.nodes, arriving.__contains__)
    flops = 0.0
    for node in walk_back(leaving, lambda node: node not in after):
        product = ops.tensor(node) if ops.is_matmul(node) else None
        factor = ops.tensor(node.args[0]) if product is not None and isinstance(node.args[0], fx.Node) else None
        if product is not None and factor is not None:
            flops += 2 * rows / exchanges.experts * math.prod(product.shape[1:]) * factor.shape[-1]
    return flops / (getattr(profile.peak_flops, dtype, profile.peak_flops.float32) * profile.efficiency.matmul)
