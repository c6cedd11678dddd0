# SPDX-License-Identifier: Apache-2.0
"""Exchanges in pieces after differentiation: choose how many, cut, verify, and log what stays whole.

In:    a post-grad graph; the number of pieces that the user asked for, or "auto".
Out:   the graph, cut in place, and what was cut.
Never: decides by a clock or by anything that ranks do not share: "auto" takes the number whose schedule has the least
       estimated time, fewer pieces where more gain under `how_many.WORTH`, or hold more memory than the limit allows
       over the graph in one piece.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import fx

from farskip_compile.compiler.config import PieceCount
from farskip_compile.compiler.inductor_passes.how_many import cheapest
from farskip_compile.compiler.inductor_passes.uncut import LEAVE_WHOLE, leave_whole
from farskip_compile.errors import Where
from farskip_compile.passes.graph.graph_snapshot import GraphSnapshot
from farskip_compile.passes.pieces import PiecesCut, Refused, cut_exchanges
from farskip_compile.passes.runner import PassRunner
from farskip_compile.passes.schedule.search import MemoryLimits, Schedule
from farskip_compile.verify.piece_bits import same_bits
from farskip_compile.verify.pieces import verify_pieces


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
    trials = _TrialCuts(graph, before, scheduled, limits)
    number = cheapest(trials.seconds) if pieces == "auto" else pieces
    if number == 1:
        return PiecesCut(1, 0, trials.refused)
    found = passes.apply("pieces", cut_exchanges, graph, number)
    products = passes.verify(verify_pieces, graph, before)
    for refused in found.refused if pieces != "auto" else ():
        refusal = f"the exchange {refused.launch!r} can't be cut in {number} pieces: {refused.reason}"
        where = Where(node=refused.node, source=refused.line)
        leave_whole(refusal, f"an exchange stays whole: {refused}", LEAVE_WHOLE, where, strict=strict)
    return replace(found, same_bits=passes.step("bits", same_bits, products))


@dataclass
class _TrialCuts:
    """Estimates of the time of a graph in pieces: copies of it are cut and scheduled."""

    graph: fx.Graph
    before: GraphSnapshot
    scheduled: Callable[[fx.Graph], Schedule]
    limits: MemoryLimits
    refused: tuple[Refused, ...] = ()
    """What could not be cut."""
    allowed: float = math.inf
    """The most bytes that the graph in pieces may hold."""
    can_be_cut: bool = True

    def seconds(self, pieces: int) -> float | None:
        """Return the estimated time; None if nothing can be cut, or the limit on memory is not kept."""
        if not self.can_be_cut:
            return None
        twin = self.before.restore()
        twin.owning_module = self.graph.owning_module
        if pieces > 1:
            cut = cut_exchanges(twin, pieces)
            self.refused = self.refused or cut.refused
            self.can_be_cut = cut.exchanges > 0
            if not self.can_be_cut:
                return None
        found = self.scheduled(twin)
        if pieces == 1:
            self.allowed = self.limits.peak(found.before.peak_bytes)
        elif found.after.peak_bytes > self.allowed:
            return None
        return found.after.makespan + found.after.late
