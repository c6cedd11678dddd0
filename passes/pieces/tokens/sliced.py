# SPDX-License-Identifier: Apache-2.0
"""Where rows leave the order of the tokens and come back, with nothing exchanged: each rank has a slice of all experts.

In:    a graph, as `TokenFacts`, without exchanges of tokens.
Out:   a `CopiedRegion` for each choice of experts by which rows change places, up to where they are back.
Never: says that a region may be cut: that is proved of the pieces (`farskip_compile.verify.tokens`). Counts for
       statistics and auxiliary losses, of which nothing is multiplied, are not part of one.

Algorithm: a window goes from one choice to the next one. Inside are the first products of rows that changed places
there, and what leads to them from the choice; and what comes of them, up to the last value that reads an order, a place
or a weight made before. Numbers that count rows are scaled, as of gathered rows. Refused by name is too little room
(`drops`).
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise

from torch import fx

from farskip_compile.passes.graph import ops
from farskip_compile.passes.pieces.rules import NotSeparableError
from farskip_compile.passes.pieces.tokens.drops import refuse_drops
from farskip_compile.passes.pieces.tokens.facts import TokenFacts, Window
from farskip_compile.passes.pieces.tokens.order import chooses, mixes
from farskip_compile.passes.pieces.tokens.region import CopiedRegion, followed, inside_between


def sliced_regions(facts: TokenFacts) -> list[CopiedRegion]:
    """In order.

    Raises:
        NotSeparableError: there is room for fewer rows than there are, or their number is a symbol.
    """
    choices = [node for node in facts.nodes if node in facts.data and chooses(node)]
    places = [*(facts.place[node] for node in choices), len(facts.nodes)]
    found = [_region(choice, Window(facts, *ends)) for choice, ends in zip(choices, pairwise(places), strict=True)]
    return [region for region in found if region is not None]


def _region(choice: fx.Node, window: Window) -> CopiedRegion | None:
    chosen = window.after([choice])
    products = _first_products(window, window.after([node for node in chosen if mixes(node)]))
    if not products:
        return None
    inside = inside_between(window, chosen, products, products)
    rows = _rows(choice)
    refuse_drops(window.ordered(inside), rows)
    return followed(CopiedRegion(products, inside, (), window, gathered=rows), chosen)


def _first_products(window: Window, early: Collection[fx.Node]) -> list[fx.Node]:
    """Those that depend on no other one in `early`."""
    later: set[fx.Node] = set()
    found = []
    for node in window.ordered(early):
        if not later.isdisjoint(node.all_input_nodes):
            later.add(node)
        elif ops.is_matmul(node):
            later.add(node)
            found.append(node)
    return found


def _rows(choice: fx.Node) -> int:
    """How many tokens have a choice."""
    value = ops.tensor(choice.all_input_nodes[0])
    sizes = () if value is None else value.shape[:-1]
    rows = 1
    for size in sizes:
        if not isinstance(size, int):
            raise NotSeparableError(choice, "the number of tokens is a symbol")
        rows *= size
    return rows
