# SPDX-License-Identifier: Apache-2.0
"""Post-grad, on request: exchanges in pieces, so that one piece is on its way while experts work on another.

In:    an ATen graph after differentiation, forward or backward; how many pieces.
Out:   the same graph with each pair of exchanges, and what lies between them, cut into that many pieces along local
       experts or slots. Weight gradients read whole activations, and are not cut.
Never: cuts what it can't show to keep rows apart; changes which rows are dropped: slots are given before, weights are
       applied behind. Equal where products of fewer rows give the same rows, else up to rounding.

Algorithm: `region` finds what can be cut, by `rules` for each operator; `emit` writes it in pieces.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from farskip_compile.passes.graph import comms, ops, user_calls
from farskip_compile.passes.pieces.axis import intervals
from farskip_compile.passes.pieces.emit import cut
from farskip_compile.passes.pieces.gathered import BY_GATHER, gathered_exchanges
from farskip_compile.passes.pieces.notes import is_piece, noted, noted_along
from farskip_compile.passes.pieces.region import find_region, pairs_of
from farskip_compile.passes.pieces.results import Results
from farskip_compile.passes.pieces.rules import NotSeparableError

CHOICES = (2, 4)
"""Numbers of pieces that "auto" considers beside 1."""


@dataclass(frozen=True)
class Refused:
    """A pair of exchanges that stays whole."""

    launch: str
    node: str
    reason: str
    line: str | None

    def __str__(self) -> str:
        where = f" ({self.line})" if self.line is not None else ""
        return f"{self.launch}: at {self.node}{where}, {self.reason}"


@dataclass(frozen=True)
class PiecesCut:
    """What was cut."""

    pieces: int
    exchanges: int
    """Pairs of exchanges that are in pieces now; of a batch in parts, all-reduces, too."""
    refused: tuple[Refused, ...] = ()
    same_bits: bool | None = None
    """Whether products in pieces were seen to give the same bits here (`verify.piece_bits`)."""
    along: tuple[str, ...] = ()
    """What the rows of pieces are that were cut before differentiation: `experts`, `tokens`, `batch`."""


def cut_exchanges(graph: fx.Graph, pieces: int) -> PiecesCut:
    """Cut all exchanges of `graph` that can be cut and are not in pieces yet, in place."""
    found, results = 0, Results()
    refused = []
    for dispatch, combine, inside in pairs_of(graph) if pieces > 1 else ():
        try:
            region = find_region(dispatch, combine, inside, pieces)
        except NotSeparableError as refusal:
            node, reason = refusal.node, noted(dispatch.launch) or refusal.reason
            refused.append(Refused(dispatch.launch.name, node.name, reason, user_calls.source_line(node)))
            continue
        cut(graph, region, intervals(region.axis.size, pieces), results)
        found += 1
    for launch in (one.launch for one in gathered_exchanges(graph)) if pieces > 1 else ():
        refused.append(Refused(launch.name, launch.name, noted(launch) or BY_GATHER, user_calls.source_line(launch)))
    return PiecesCut(pieces, found, tuple(refused))


def cut_earlier(graph: fx.Graph) -> PiecesCut:
    """What was cut before differentiation, by its notes; the number of pieces is the largest."""
    pieces = [node for node in ops.calls(graph, comms.is_collective) if is_piece(node)]
    pairs = 0
    for number in {int(noted(node)) for node in pieces}:
        # gathers bring tokens and what was chosen for them, reduce-scatters of a gradient go back for several of these
        there, gathers, back, sums = (
            sum(holds(node) for node in pieces if int(noted(node)) == number)
            for holds in (comms.is_all_to_all, comms.is_gather, comms.is_scatter, comms.is_all_reduce)
        )
        pairs += (there // 2 + min(gathers, back) + sums) // number
    along = tuple(sorted({noted_along(node) for node in pieces}))
    return PiecesCut(max((int(noted(node)) for node in pieces), default=1), pairs, along=along)
