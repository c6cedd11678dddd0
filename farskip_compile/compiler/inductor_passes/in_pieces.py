# SPDX-License-Identifier: Apache-2.0
"""Exchanges in pieces: how many, cut, verified, and what stays whole said.

In:    a post-grad graph; the number of pieces that the user asked for, or "auto".
Out:   the graph, cut in place, and what was cut.
Never: decides by a clock or by anything that ranks do not share: "auto" takes the number whose schedule has the least
       estimated time, fewer pieces where more gain under `WORTH`, or hold more memory than the limit allows over the
       graph in one piece.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import fx

from farskip_compile.compiler.config import PieceCount
from farskip_compile.errors import UnsupportedPatternError, Where
from farskip_compile.passes.graph.graph_snapshot import GraphSnapshot
from farskip_compile.passes.pieces import CHOICES, PiecesCut, Refused, cut_exchanges
from farskip_compile.passes.runner import PassRunner, log
from farskip_compile.passes.schedule.search import MemoryLimits, Schedule
from farskip_compile.verify.piece_bits import same_bits
from farskip_compile.verify.pieces import verify_pieces

WORTH = 0.01
"""Fraction of the estimated time that more pieces must save."""


def cut_in_pieces(
    graph: fx.Graph,
    pieces: PieceCount,
    passes: PassRunner,
    *,
    strict: bool,
    scheduled: Callable[[fx.Graph], Schedule],
    limits: MemoryLimits,
) -> PiecesCut:
    """Cut the exchanges of `graph` in place.

    Args:
        graph: forward or backward.
        pieces: as asked for.
        passes: runs the pass.
        strict: what can't be cut is an error.
        scheduled: the schedule of a graph, which it may change.
        limits: of the peak, for "auto".

    Raises:
        UnsupportedPatternError: one of them can't be cut in the number of pieces that was asked for.
        VerificationError: what was cut does not compute the same.
    """
    if pieces == 1 or not passes.is_enabled("pieces"):
        return PiecesCut(1, 0)
    before = GraphSnapshot(graph)
    number, whole = _choose(graph, before, scheduled, limits) if pieces == "auto" else (pieces, ())
    if number == 1:
        return PiecesCut(1, 0, whole)
    found = passes.apply("pieces", cut_exchanges, graph, number)
    products = passes.verify(verify_pieces, graph, before)
    for refused in found.refused if pieces != "auto" else ():
        if strict:
            raise UnsupportedPatternError(
                f"the exchange {refused.launch!r} can't be cut in {number} pieces: {refused.reason}",
                way_out='pieces="auto" or strict=False leave it whole, pieces=1 all of them',
                where=Where(node=refused.node, source=refused.line),
            )
        log.warning("an exchange stays whole: %s", refused)
    return replace(found, same_bits=passes.step("bits", same_bits, products))


def _choose(
    graph: fx.Graph, before: GraphSnapshot, scheduled: Callable[[fx.Graph], Schedule], limits: MemoryLimits
) -> tuple[int, tuple[Refused, ...]]:
    """The number of pieces with the least estimated time, of those that keep the limit on memory; and what can't be
    cut."""
    best, least, allowed = 1, float("inf"), float("inf")
    refused: tuple[Refused, ...] = ()
    for number in (1, *CHOICES):
        twin = before.restore()
        twin.owning_module = graph.owning_module
        if number > 1:
            cut = cut_exchanges(twin, number)
            refused = refused or cut.refused
            if not cut.exchanges:
                break
        found = scheduled(twin)
        if number == 1:
            allowed = limits.peak(found.before.peak_bytes)
        elif found.after.peak_bytes > allowed:
            continue
        if (seconds := found.after.makespan + found.after.late) < least * (1 - WORTH):
            best, least = number, seconds
    return best, refused
