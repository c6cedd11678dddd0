# SPDX-License-Identifier: Apache-2.0
"""How many pieces "auto" takes for an exchange: the number with the least estimated time.

In:    an exchange, or the region that is cut with it; the profile.
Out:   a number of pieces, 1 or of `CHOICES`. `cheapest` chooses it; what differs is how the time is estimated.
Never: decides by anything that ranks do not share.

Before differentiation, the time is that of the chain dispatch, experts, combine, from the sizes in the graph. After it,
that of the schedule (`in_pieces`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import chain

import torch
from torch import fx

from farskip_compile.costs.collectives import collective_seconds
from farskip_compile.costs.profile import CollectiveKind, HardwareProfile
from farskip_compile.passes.graph import comms, ops
from farskip_compile.passes.graph.walk import spread, walk_back
from farskip_compile.passes.pieces import CHOICES
from farskip_compile.passes.pieces.blocks import Exchanges
from farskip_compile.passes.pieces.tokens.order import has_no_rows
from farskip_compile.passes.pieces.tokens.region import CopiedRegion

WORTH = 0.01
"""Fraction of the estimated time that more pieces must save."""
THERE_AND_BACK: tuple[CollectiveKind, CollectiveKind] = ("all_to_all", "all_to_all")


def cheapest(seconds: Callable[[int], float | None]) -> int:
    """Return the number of pieces with the least estimated time, more only where they save `WORTH`.

    Args:
        seconds: estimates the time of a number of pieces; None for a number that can't be taken.
    """
    best, least = 1, seconds(1)
    for pieces in CHOICES:
        time = seconds(pieces)
        if time is not None and least is not None and time < least * (1 - WORTH):
            best, least = pieces, time
    return best


def best_by_expert(profile: HardwareProfile, exchanges: Exchanges) -> int:
    """Return the number of pieces of an exchange that is cut by local experts."""
    arriving = set(chain.from_iterable(one.blocks for one in exchanges.members if one.to_experts))
    leaving = list(chain.from_iterable(one.blocks for one in exchanges.members if not one.to_experts))
    after = spread(next(iter(arriving)).graph.nodes, arriving.__contains__)
    between = walk_back(leaving, lambda node: node not in after)
    return _cheapest_by_all_to_all(profile, exchanges.members[0].launch, exchanges.experts, between, 0)


def best_by_token(profile: HardwareProfile, region: CopiedRegion) -> int:
    """Return the number of pieces of an exchange that is cut by tokens."""
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
    return _cheapest_chain(profile, ("all_gather", "reduce_scatter"), sent, ranks, region.units(), experts)


def _cheapest_by_all_to_all(
    profile: HardwareProfile, launch: fx.Node, most: int, between: Iterable[fx.Node], exchanges_of_counts: int
) -> int:
    """Return the number of pieces of an exchange whose sizes data decides.

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
    return _cheapest_chain(profile, THERE_AND_BACK, bytes_sent, ranks, most, experts, counts)


def _cheapest_chain(
    profile: HardwareProfile,
    kinds: tuple[CollectiveKind, CollectiveKind],
    bytes_sent: int,
    ranks: int,
    most: int,
    experts: float,
    counts: float = 0.0,
) -> int:
    """Return the number of pieces with the least estimated time of the chain dispatch, experts, combine.

    Args:
        profile: of the hardware.
        kinds: collectives there and back.
        bytes_sent: by each of both, in one piece.
        ranks: among which.
        most: pieces that there can be.
        experts: seconds of what is computed in between.
        counts: seconds that each piece adds.
    """

    def seconds(pieces: int) -> float | None:
        if pieces > max(most, 1):
            return None
        each = math.ceil(bytes_sent / pieces)
        both = sum(collective_seconds(kind, each, ranks, profile) for kind in kinds)
        return max(pieces * (both + counts), both + counts + experts)

    return cheapest(seconds)


def best_of_combine(profile: HardwareProfile, launch: fx.Node) -> int:
    """Return the number of pieces of an exchange with room for a fixed number of rows, by the launch of its combine."""
    sent, ranks = ops.tensor(launch.args[0]), len(launch.args[1])  # type: ignore[arg-type]
    assert sent is not None
    if not all(isinstance(size, int) for size in sent.shape):
        return 1  # ranks may have compiled for different numbers of tokens
    flops = sum(map(_flops_of, filter(ops.is_matmul, walk_back(launch.all_input_nodes, comms.is_wait))))
    seconds = _seconds(flops, sent, profile)
    return _cheapest_chain(profile, THERE_AND_BACK, sent.nbytes, ranks, max(CHOICES), seconds)


def _flops_of(node: fx.Node) -> float:
    """Return the operations of one product with all of its rows."""
    product, factor = ops.tensor(node), ops.tensor(node.all_input_nodes[0])
    return 2.0 * product.numel() * factor.shape[-1] if product is not None and factor is not None else 0.0


def _flops(between: Iterable[fx.Node], rows: int) -> float:
    """Return the operations of products that together get the rows that are sent.

    Where each expert has a product of its own, each gets its share.
    """
    flops: dict[object, list[float]] = {}
    for node in between:
        product = ops.tensor(node) if ops.is_matmul(node) else None
        factor = ops.tensor(node.args[0]) if product is not None and isinstance(node.args[0], fx.Node) else None
        if product is not None and factor is not None and has_no_rows(node):
            each = flops.setdefault(str(product.shape[0]), [])
            each.append(2 * rows * math.prod(product.shape[1:]) * factor.shape[-1])
    return sum(map(sum, flops.values())) / max(len(flops), 1)


def _seconds(flops: float, like: torch.Tensor, profile: HardwareProfile) -> float:
    """Return the time of so many operations, in the type of a tensor."""
    dtype = str(like.dtype).removeprefix("torch.")
    return flops / (getattr(profile.peak_flops, dtype, profile.peak_flops.float32) * profile.efficiency.matmul)
