# SPDX-License-Identifier: Apache-2.0
"""Exchanges without drops in pieces: how many, cut before differentiation, verified, and what stays whole said.

In:    the module of a Dynamo graph, rewired or not; what was asked for.
Out:   its graph, cut.
Never: decides by anything that ranks do not share: "auto" takes the number of pieces with the least estimated time of
       the chain dispatch, experts, combine, from the sizes in the graph and the profile; takes a cut that is not shown.

Algorithm:
1. By local experts, where each has products of its own: their rows, and the gradients of their weights, stay whole.
2. What is left, or all if asked for, by tokens: on a copy, which takes the graph's place once it is verified. Exchanges
   by all-gather have no other way.
3. What stays whole is an error if a number of pieces was asked for.
`hand_on_pieces`, of a part of a model, goes the same way as 2: on a copy, which is verified.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from functools import partial
from itertools import chain

import torch
from torch import fx

from farskip_compile.compiler.config import PieceCount, PiecesAlong
from farskip_compile.compiler.inductor_passes.in_pieces import WORTH, log
from farskip_compile.costs.collectives import collective_seconds
from farskip_compile.costs.profile import CollectiveKind, HardwareProfile
from farskip_compile.errors import UnsupportedPatternError, VerificationError, Where
from farskip_compile.passes import PASSES
from farskip_compile.passes.contract import Stage
from farskip_compile.passes.driver import Driver
from farskip_compile.passes.graph import comms, ops, user_calls
from farskip_compile.passes.graph.graph_snapshot import GraphSnapshot
from farskip_compile.passes.graph.walk import spread, walk_back
from farskip_compile.passes.pieces import CHOICES
from farskip_compile.passes.pieces.blocks import Exchanges
from farskip_compile.passes.pieces.gathered import BY_GATHER, gathered_exchanges
from farskip_compile.passes.pieces.notes import is_piece, note
from farskip_compile.passes.pieces.rules import NotSeparableError
from farskip_compile.passes.pieces.tokens import TokensCut
from farskip_compile.passes.pieces.tokens.order import has_no_rows
from farskip_compile.passes.pieces.tokens.region import CopiedRegion
from farskip_compile.verify.tokens.by_expert import verify_by_expert
from farskip_compile.verify.tokens import verify_tokens

BY_EXPERT, BY_TOKEN, GO_ON = "pieces_by_expert", "pieces_by_token", "pieces_go_on"
"""Names of passes."""
OTHERS = frozenset(one.name for one in PASSES if one.stage is Stage.REWIRED)
UncutReasons = dict[str, tuple[str, Where]]
"""By the launch of an exchange that is not cut: why, and where."""


def cut_without_drops(
    module: fx.GraphModule,
    pieces: PieceCount,
    along: PiecesAlong,
    skip: Collection[str],
    profile: HardwareProfile,
    *,
    strict: bool,
) -> None:
    """Cut the exchanges of a Dynamo graph whose sizes data decides.

    Raises:
        UnsupportedPatternError: one of them can't be cut in the number of pieces that was asked for.
        VerificationError: what was cut by expert does not compute the same.
    """
    if pieces == 1:
        return
    whole: UncutReasons = {}
    if along != "tokens" and BY_EXPERT not in skip:
        whole = _by_expert(module.graph, pieces, profile)
    if along == "experts":
        for launch in (one.launch for one in gathered_exchanges(module.graph)):
            whole[launch.name] = BY_GATHER, user_calls.where(launch)
            note(launch, BY_GATHER)
    if along != "experts" and BY_TOKEN not in skip:
        whole = _by_token(module, pieces, profile, whole)
    kind = "by all-gather" if gathered_exchanges(module.graph) else "whose sizes data decides"
    for reason, where in whole.values() if pieces != "auto" else ():
        if strict:
            raise UnsupportedPatternError(
                f"an exchange {kind} can't be cut in {pieces} pieces: {reason}",
                way_out='pieces="auto" or strict=False leave it whole, pieces=1 all of them',
                where=where,
            )
        log.warning("an exchange stays whole: %s", reason)


def hand_on_pieces(module: fx.GraphModule, skip: Collection[str]) -> None:
    """In a part of a model whose exchanges were cut by tokens, let pieces that come in go on as they are. Where that
    can't be done, or is not proved, they are joined, as they came.
    """
    if BY_TOKEN in skip or GO_ON in skip:
        return
    before = GraphSnapshot(module.graph)
    twin = before.restore()
    twin.owning_module = module
    driver = Driver(PASSES, Stage.REWIRED, {"graph": twin}, OTHERS - {GO_ON})
    try:
        driver.run()
        if driver.facts["handed_on"]:
            driver.verify(verify_tokens, twin, before)
            driver.finish()
            module.graph = twin
    except (NotSeparableError, VerificationError) as error:
        log.warning("pieces of tokens that came in from the layer before are joined: %s", error.reason)


# By expert


def _by_expert(graph: fx.Graph, pieces: PieceCount, profile: HardwareProfile) -> UncutReasons:
    """Cut in place."""
    before = GraphSnapshot(graph)
    how_many = partial(_best_by_expert, profile) if pieces == "auto" else lambda _: pieces
    driver = Driver(PASSES, Stage.REWIRED, {"graph": graph, "how_many": how_many}, OTHERS - {BY_EXPERT})
    driver.run()
    driver.verify(verify_by_expert, graph, before)
    driver.finish()
    return {one.node.name: (one.reason, user_calls.where(one.node)) for one in driver.facts["stay_whole"]}


def _best_by_expert(profile: HardwareProfile, exchanges: Exchanges) -> int:
    arriving = set(chain.from_iterable(one.blocks for one in exchanges.members if one.to_experts))
    leaving = list(chain.from_iterable(one.blocks for one in exchanges.members if not one.to_experts))
    after = spread(next(iter(arriving)).graph.nodes, arriving.__contains__)
    between = walk_back(leaving, lambda node: node not in after)
    return _cheapest_by_all_to_all(profile, exchanges.members[0].launch, exchanges.experts, between, 0)


# By token


def _by_token(
    module: fx.GraphModule, pieces: PieceCount, profile: HardwareProfile, whole: UncutReasons
) -> UncutReasons:
    """Cut what is whole; what then still is."""
    before = GraphSnapshot(module.graph)
    twin = before.restore()
    twin.owning_module = module
    how_many = partial(_best_by_token, profile) if pieces == "auto" else lambda _: pieces
    facts = {"graph": twin, "pieces_of": how_many}
    driver = Driver(PASSES, Stage.REWIRED, facts, OTHERS - {BY_TOKEN})
    try:
        driver.run()
        cut: TokensCut = driver.facts["tokens_cut"]
        left = {(one.launch or one.node).name: (one.reason, user_calls.where(one.node)) for one in cut.whole}
        if cut.pairs:
            driver.verify(verify_tokens, twin, before)
            driver.finish()
            module.graph = twin
    except (NotSeparableError, VerificationError) as error:
        where = user_calls.where(error.node) if isinstance(error, NotSeparableError) else error.where or Where()
        left = {_whole(module.graph)[0].name: (error.reason, where)}
    reasons: UncutReasons = {}
    for node in _whole(module.graph):
        found = [said[node.name] for said in (whole, left) if node.name in said]
        if found:
            reasons[node.name] = "; by token: ".join(reason for reason, _ in found), found[-1][1]
            note(node, reasons[node.name][0])
    return reasons


def _whole(graph: fx.Graph) -> list[fx.Node]:
    """The launches of exchanges that are not in pieces, and have room for all rows or may have it."""
    return [*filter(_is_whole, graph.nodes), *(one.launch for one in gathered_exchanges(graph))]


def _is_whole(node: fx.Node) -> bool:
    """Whether this is an exchange whose sizes data decides, and no piece of one."""
    if not comms.is_all_to_all(node) or is_piece(node):
        return False
    splits = [split for split in node.args[1:3] if isinstance(split, list | tuple)]
    return any(isinstance(size, fx.Node) for split in splits for size in split)


def _best_by_token(profile: HardwareProfile, region: CopiedRegion) -> int:
    if region.gathered:
        return _best_by_gather(profile, region)
    return _cheapest_by_all_to_all(profile, region.launches[0], region.units(), region.inside, 1) if region.pairs else 1


def _best_by_gather(profile: HardwareProfile, region: CopiedRegion) -> int:
    gathers = filter(comms.is_gather, region.launches)
    value = max((one for launch in gathers if (one := ops.tensor(launch)) is not None), key=torch.Tensor.numel)
    ranks: int = region.launches[0].args[1]  # type: ignore[assignment]
    flops = 0.0
    for node in filter(ops.is_matmul, region.inside):
        # a grouped product leaves out the rows of other ranks' experts
        flops += _flops_of(node) / (ranks if "grouped" in ops.op_name(node) else 1)
    experts = _seconds(flops / region.pairs, value, profile)
    sent = value.numel() * value.dtype.itemsize
    return _cheapest(profile, ("all_gather", "reduce_scatter"), sent, ranks, region.units(), experts)


# How many


def _cheapest_by_all_to_all(
    profile: HardwareProfile, launch: fx.Node, most: int, between: Iterable[fx.Node], exchanges_of_counts: int
) -> int:
    """The number of pieces with the least estimated time.

    Args:
        profile: of the hardware.
        launch: the dispatch.
        most: pieces that there can be.
        between: what is computed between dispatch and combine, in order.
        exchanges_of_counts: that each piece adds.
    """
    sent, ranks = ops.tensor(launch.args[0]), len(launch.args[1])  # type: ignore[arg-type]
    assert sent is not None
    rows: int | torch.SymInt = sent.shape[0]
    if not isinstance(rows, int):
        return 1  # ranks may have compiled for different numbers of tokens
    bytes_sent = rows * math.prod(sent.shape[1:]) * sent.dtype.itemsize
    experts = _seconds(_flops(between, rows), sent, profile)
    counts = exchanges_of_counts * collective_seconds("all_to_all", 8 * ranks, ranks, profile)
    return _cheapest(profile, ("all_to_all", "all_to_all"), bytes_sent, ranks, most, experts, counts)


def _cheapest(
    profile: HardwareProfile,
    kinds: tuple[CollectiveKind, CollectiveKind],
    bytes_sent: int,
    ranks: int,
    most: int,
    experts: float,
    counts: float = 0.0,
) -> int:
    """The number of pieces with the least estimated time, more only where they save `WORTH`.

    Args:
        profile: of the hardware.
        kinds: there and back.
        bytes_sent: by each of both, in one piece.
        ranks: among which.
        most: pieces that there can be.
        experts: seconds of what is computed in between.
        counts: seconds that each piece adds.
    """

    def seconds(pieces: int) -> float:
        each = math.ceil(bytes_sent / pieces)
        both = sum(collective_seconds(kind, each, ranks, profile) for kind in kinds)
        return max(pieces * (both + counts), both + counts + experts)

    best = 1
    for pieces in CHOICES:
        if pieces <= most and seconds(pieces) < seconds(best) * (1 - WORTH):
            best = pieces
    return best


def best_of_combine(profile: HardwareProfile, launch: fx.Node) -> int:
    """The number of pieces of an exchange with room for a fixed number of rows, by the launch that brings them back."""
    sent, ranks = ops.tensor(launch.args[0]), len(launch.args[1])  # type: ignore[arg-type]
    assert sent is not None
    if not all(isinstance(size, int) for size in sent.shape):
        return 1  # ranks may have compiled for different numbers of tokens
    flops = sum(map(_flops_of, filter(ops.is_matmul, walk_back(launch.all_input_nodes, comms.is_wait))))
    seconds = _seconds(flops, sent, profile)
    return _cheapest(profile, ("all_to_all", "all_to_all"), sent.nbytes, ranks, max(CHOICES), seconds)


def _flops_of(node: fx.Node) -> float:
    """Of one product, with all of its rows."""
    product, factor = ops.tensor(node), ops.tensor(node.all_input_nodes[0])
    return 2.0 * product.numel() * factor.shape[-1] if product is not None and factor is not None else 0.0


def _flops(between: Iterable[fx.Node], rows: int) -> float:
    """Of products, if all of them together get as many rows as are sent: each its share, where each expert has one of
    its own."""
    flops: dict[object, list[float]] = {}
    for node in between:
        product = ops.tensor(node) if ops.is_matmul(node) else None
        factor = ops.tensor(node.args[0]) if product is not None and isinstance(node.args[0], fx.Node) else None
        if product is not None and factor is not None and has_no_rows(node):
            each = flops.setdefault(str(product.shape[0]), [])
            each.append(2 * rows * math.prod(product.shape[1:]) * factor.shape[-1])
    return sum(map(sum, flops.values())) / max(len(flops), 1)


def _seconds(flops: float, like: torch.Tensor, profile: HardwareProfile) -> float:
    """Of so many, in the type of a tensor."""
    dtype = str(like.dtype).removeprefix("torch.")
    return flops / (getattr(profile.peak_flops, dtype, profile.peak_flops.float32) * profile.efficiency.matmul)
