# SPDX-License-Identifier: Apache-2.0
"""Find the nodes that are copied for each piece if the tokens of an exchange are cut.

They go from the choice of experts to the place where every token has what its experts made of it.

In:    a Dynamo graph.
Out:   a `CopiedRegion` for each pair of exchanges whose sizes data decides, or by all-gather (`gathers`); of one that
       has none, the reason.
Never: says that a region may be cut: that is proved of the pieces (`verify.tokens`). Counts for statistics and
       auxiliary losses are not part of it, as far as nothing else needs them.

Algorithm, for all-to-alls with the same sizes, between those before and those behind:
1. Their experts were chosen by the last selection that they depend on. What depends on it is in the order of the
   tokens up to where rows meet or change places (`order.mixes`); from there on it is inside.
2. Inside is what leads to the exchanges, and what comes from them, up to the last value that reads an order or a place
   made before: there every row is back where it belongs. Writes to a value inside are, too.
3. What then keeps rows apart and reads nothing but the choice besides (the weights of experts, their sum) follows.
4. Two regions are one where everything between them keeps rows apart: then a piece goes from one exchange into the next
   without waiting for the others.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch import fx

from farskip_compile.passes.graph import ops
from farskip_compile.passes.pieces.gathered import gathered_exchanges
from farskip_compile.passes.pieces.notes import is_piece
from farskip_compile.passes.pieces.rules import NotSeparableError
from farskip_compile.passes.pieces.tokens.facts import ExchangeMembers, TokenFacts, Window, deciding, exchanges_by_sizes
from farskip_compile.passes.pieces.tokens.gathers import inside_of
from farskip_compile.passes.pieces.tokens.order import MADE, chooses, has_no_rows, keeps_rows, mixes, rows_of
from farskip_compile.passes.schedule.collectives import launches_with_waits

UNITS = 8
"""Of equal parts, more than that are enough for any number of pieces."""


@dataclass(frozen=True)
class CopiedRegion:
    """Nodes that are copied for each piece."""

    launches: Sequence[fx.Node]
    """The exchanges of tokens in it, in order."""
    inside: Collection[fx.Node]
    """Those whose values are not in the order of the tokens."""
    around: Collection[fx.Node]
    """Those whose values are."""
    window: Window = field(repr=False)
    """The part of the graph that it lies in."""
    pairs: int = 1
    """Dispatches with their combines."""
    along: str = "tokens"
    """What its rows are."""
    gathered: int = 0
    """Where a rank has all rows inside, gathered or never sent, how many they are; 0 of exchanges by all-to-all."""

    def nodes(self) -> list[fx.Node]:
        """All of them, in the order of the graph."""
        return self.window.ordered({*self.inside, *self.around})

    def cut(self) -> list[fx.Node]:
        """Return the values from outside that are cut, each along its rows."""
        own = {*self.inside, *self.around}
        read = {arg: None for node in self.nodes() for arg in node.all_input_nodes if arg not in own}
        return [arg for arg in read if arg in self.window.facts.data and rows_of(arg) is not None]

    def units(self) -> int:
        """Into how many equal parts they can all be cut, and what is computed around of them."""
        around = (node for node in self.around if ops.op_name(node) not in MADE and rows_of(node) is not None)
        return math.gcd(*(rows_of(value) or 1 for value in (*self.cut(), *around)))


def regions_of(graph: fx.Graph) -> tuple[list[CopiedRegion], list[NotSeparableError]]:
    """Return the regions of `graph`, and the reasons why exchanges have none."""
    regions, refused = _by_all_to_all(graph)
    if not regions and not refused:
        regions, refused = _by_gather(graph)
    return list(_joined(regions)), refused


def _by_all_to_all(graph: fx.Graph) -> tuple[list[CopiedRegion], list[NotSeparableError]]:
    together = exchanges_by_sizes(graph, lambda launch: not is_piece(launch) and ops.is_floating(launch))
    if not together:
        return [], []
    first, _ = together[0][0]
    regions: list[CopiedRegion] = []
    refused: list[NotSeparableError] = []
    for members, window in TokenFacts(graph, deciding(first)).windows(together):
        try:
            regions.append(_region(window, members))
        except NotSeparableError as reason:
            refused.append(reason)
    return regions, refused


def _by_gather(graph: fx.Graph) -> tuple[list[CopiedRegion], list[NotSeparableError]]:
    found = gathered_exchanges(graph)
    if not found:
        return [], []
    waits = launches_with_waits(graph)
    facts = TokenFacts(graph, deciding(found[0].launch))
    exchanges = {one.launch: one for one in found}
    pairs = [[(one.launch, waits[one.launch]), (one.scatter, waits[one.scatter])] for one in found]
    regions: list[CopiedRegion] = []
    refused: list[NotSeparableError] = []
    for members, window in facts.windows(pairs):
        exchange = exchanges[members[0][0]]
        try:
            launches, inside, rows = inside_of(window, exchange, waits[exchange.scatter])
        except NotSeparableError as reason:
            refused.append(NotSeparableError(reason.node, reason.reason, exchange.launch))
            continue
        inside = with_writers(window, inside, window.after(launches))
        regions.append(CopiedRegion(launches, inside, (), window, gathered=rows))
    return regions, refused


def _region(window: Window, members: ExchangeMembers) -> CopiedRegion:
    launches = [launch for launch, _ in members]
    back = [wait for launch, waits in members if launch.args[1:3] != launches[0].args[1:3] for wait in waits]
    if not back:
        raise NotSeparableError(launches[0], "nothing comes back with the same sizes")
    leads = window.before(launches)
    choice = next((node for node in reversed(window.ordered(leads)) if chooses(node)), None)
    if choice is None:
        raise NotSeparableError(launches[0], "no choice of experts was found before it")
    chosen = window.after([choice])
    meet = {node for node in chosen & leads if mixes(node)}
    if not meet:
        raise NotSeparableError(launches[0], "its rows were not put in order by a choice of experts")
    inside = inside_between(window, window.after(meet), launches, back)
    return followed(CopiedRegion(launches, inside, (), window), chosen)


def inside_between(
    window: Window, meeting: Collection[fx.Node], ends: Collection[fx.Node], back: Sequence[fx.Node]
) -> set[fx.Node]:
    """Return the nodes inside of a region (step 2).

    They depend on rows that met, and lead to `ends`; or come from `back`, up to where rows are in the order of the
    tokens again.
    """
    home = window.after(back)
    early = set(meeting) - home
    returned = _returned(window, home, early, back)
    return with_writers(window, returned | (early & window.before({*ends, *returned})), early | returned)


def _returned(
    window: Window, home: Collection[fx.Node], early: Collection[fx.Node], back: Sequence[fx.Node]
) -> set[fx.Node]:
    """Return the nodes that hold what came back, up to where their rows are those of tokens."""
    ends = set(back)
    for node in window.ordered(home):
        if chooses(node) or ops.is_attention(node):
            break  # of another layer
        if any(arg in early and rows_of(arg) is not None for arg in node.all_input_nodes):
            ends.add(node)
    inside = {node for node in window.before(ends) if node in home}
    for node in window.ordered(set(home) - inside):
        unknown = next((arg for arg in node.all_input_nodes if arg in inside and has_no_rows(arg)), None)
        if unknown is not None and node.op == "output":
            raise NotSeparableError(unknown, "as many rows as data decides come back, also where they leave the graph")
        if unknown is not None:
            inside.add(node)
    return inside


def with_writers(window: Window, inside: set[fx.Node], known: Collection[fx.Node]) -> set[fx.Node]:
    """And what is written to what is inside, with what that needs."""
    found = set(inside)
    queue = list(inside)
    while queue:
        for writer in window.facts.writers.get(queue.pop(), ()):
            new = {node for node in window.before([writer]) if node in known} | {writer}
            queue.extend(new - found)
            found |= new
    return found


def followed(region: CopiedRegion, chosen: Collection[fx.Node]) -> CopiedRegion:
    """Step 3; and tensors that are made for the region."""
    window, inside = region.window, region.inside
    around: set[fx.Node] = set()
    for node in window.ordered(chosen):
        home = [arg for arg in node.all_input_nodes if arg in inside or arg in around]
        if node in inside or not home or ops.tensor(node) is None or not keeps_rows(node):
            continue
        others = [arg for arg in node.all_input_nodes if arg not in home]
        in_order = all(rows_of(arg) is not None and ops.is_floating(arg) for arg in home)
        if in_order and all(arg in chosen or arg not in window.facts.data for arg in others):
            around.add(node)
    read = {arg for node in (*inside, *around) for arg in node.all_input_nodes}
    made = {arg for arg in read if ops.op_name(arg) in MADE and arg not in inside and arg in window.facts.data}
    return replace(region, around=around | made)


# 4


def _joined(regions: Sequence[CopiedRegion]) -> Iterator[CopiedRegion]:
    """Each is compared with the one before it alone, and put together with all it belongs to once: linear."""
    groups: list[tuple[list[CopiedRegion], set[fx.Node]]] = []
    for region in regions:
        between = _between(groups[-1][0][-1], region) if groups else None
        if between is None:
            groups.append(([region], set()))
        else:
            groups[-1][0].append(region)
            groups[-1][1].update(between)
    for members, between in groups:
        launches = [launch for one in members for launch in one.launches]
        inside = {node for one in members for node in one.inside}
        around = between.union(*(one.around for one in members)) - inside
        first, last = members[0].window, members[-1].window
        window = Window(first.facts, first.start, last.end)
        yield CopiedRegion(launches, inside, around, window, len(members), gathered=members[0].gathered)


def _between(one: CopiedRegion, other: CopiedRegion) -> set[fx.Node] | None:
    """Return the nodes between two regions, if rows stay apart there, and they can be cut into as many parts."""
    window = Window(one.window.facts, one.window.start, other.window.end)
    own = {*one.inside, *one.around}
    after = window.after(own) - own
    between = {node for node in window.before(other.cut()) if node in after}
    if not between or not all(ops.op_name(node) in MADE or keeps_rows(node) for node in between):
        return None
    if any(node in window.facts.writers for node in between) or one.gathered != other.gathered:
        return None
    both = CopiedRegion([], {*one.inside, *other.inside}, {*one.around, *other.around, *between}, window)
    return between if both.units() >= min(one.units(), other.units(), UNITS) else None
