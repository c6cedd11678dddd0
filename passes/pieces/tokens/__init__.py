# SPDX-License-Identifier: Apache-2.0
"""Before differentiation, on request: exchanges without drops in pieces, each of them the rows of some tokens.

By all-to-all or by all-gather and reduce-scatter.

In:    a Dynamo graph; for each region in how many pieces.
Out:   the same graph, in which each piece has exchanges of its own, and of their sizes, too.
Never: changes what becomes of a token. A product of matrices has fewer rows, and gradients of weights are summed piece
       by piece: equal up to rounding.

Algorithm: `region` finds what is copied, by `order` of each operator; `copies` copies it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

from farskip_compile.passes.pieces.rules import NotSeparableError
from farskip_compile.passes.pieces.tokens.copies import copy_for_pieces
from farskip_compile.passes.pieces.tokens.region import CopiedRegion, regions_of


@dataclass(frozen=True)
class TokensCut:
    """What was cut."""

    pairs: int
    """Pairs of exchanges that are in pieces now."""
    whole: tuple[NotSeparableError, ...]
    """Of each that is not the reason, at its dispatch."""


def cut_by_token(graph: fx.Graph, pieces_of: Callable[[CopiedRegion], int]) -> TokensCut:
    """Cut the exchanges of `graph` whose sizes data decides and that are no pieces yet, in place.

    Raises:
        NotSeparableError: a region can't be copied for fewer rows. The graph is half done then, and to be thrown away.
    """
    regions, refused = regions_of(graph)
    pairs = 0
    for region in regions:
        pieces = pieces_of(region)
        if pieces > 1:
            copy_for_pieces(graph, region, pieces)
            pairs += region.pairs
    return TokensCut(pairs, tuple(refused))
