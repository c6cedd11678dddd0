# SPDX-License-Identifier: Apache-2.0
"""Pieces of tokens that come in from another layer's graph go on, each by itself, to this layer's exchange.

    as it comes in    p1 ─┐                            ┌─► narrow 1 ──► dispatch 1
                      p2 ─┴► cat ──► norm, router ─────┴─► narrow 2 ──► dispatch 2

    as it goes on     p1 ──► norm, router ──► dispatch 1
                      p2 ──► norm, router ──► dispatch 2

In:    a Dynamo graph whose exchanges were cut by tokens, with what it is handed in pieces written out.
Out:   the same graph, in which what lies between the joined pieces and those of its own exchange is there for each.
Never: says that this may be done: that is proved of the result (`farskip_compile.verify.tokens`).

Algorithm:
1. Joins are concatenations of rows; a value is taken apart where each of its pieces is narrowed out of it.
2. For each way to cut rows: what lies between joins and values taken apart in just this way. If all of it keeps rows
   apart, it is copied for each piece (`copies`).
3. Who takes a piece out of a concatenation gets the piece itself. For other readers it is made anew, so that the proof
   does not take it for given.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate, pairwise

from torch import fx

from farskip_compile._compat import is_module_state
from farskip_compile.passes.graph import ops
from farskip_compile.passes.graph.effects import is_random
from farskip_compile.passes.graph.walk import walk_back
from farskip_compile.passes.pieces.axis import intervals
from farskip_compile.passes.pieces.tokens.copies import copy_for_pieces
from farskip_compile.passes.pieces.tokens.facts import TokenFacts, Window
from farskip_compile.passes.pieces.tokens.order import MADE, keeps_rows, row_dim
from farskip_compile.passes.pieces.tokens.region import CopiedRegion

Ends = tuple[Fraction, ...]
"""Where pieces end, as parts of all rows."""


def hand_on(graph: fx.Graph) -> int:
    """Edit `graph` in place; returns how many values are taken apart earlier now.

    Raises:
        NotSeparableError: a copy can't be made for fewer rows. The graph is to be thrown away then.
    """
    joins, taken = _joins(graph), _taken(graph)  # 1
    handed = sum(_copy(graph, joins[ends], taken[ends]) for ends in joins if ends in taken)  # 2
    if handed:
        _take_pieces(graph)  # 3
    return handed


def _joins(graph: fx.Graph) -> dict[Ends, list[fx.Node]]:
    found: dict[Ends, list[fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        lengths = _lengths(node)
        if lengths:
            found[_ends(lengths)].append(node)
    return found


def _lengths(node: fx.Node) -> list[int]:
    """The rows of each operand of a concatenation of rows; none if it is something else."""
    value, parts = ops.tensor(node), node.args[0] if node.args else None
    if ops.op_name(node) != "cat" or value is None or not isinstance(parts, list | tuple):
        return []
    dim = row_dim(value)
    values = [ops.tensor(part) if isinstance(part, fx.Node) else None for part in parts]
    if dim is None or _dim(node, value.dim()) != dim:
        return []
    sizes = [one.shape[dim] if one is not None else None for one in values]
    return [size for size in sizes if isinstance(size, int)] if all(isinstance(size, int) for size in sizes) else []


def _ends(lengths: Sequence[int]) -> Ends:
    total = sum(lengths)
    return tuple(Fraction(end, total) for end in accumulate(lengths)) if total else ()


def _taken(graph: fx.Graph) -> dict[Ends, list[fx.Node]]:
    """What is taken apart into adjoining rows, by where they end."""
    found: dict[Ends, list[fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        value = ops.tensor(node)
        dim = row_dim(value) if value is not None else None
        if value is None or dim is None:
            continue
        rows = sorted({_rows(user) for user in node.users if _narrows(user, node, dim)})
        ends = [low + length for low, length in rows]
        adjoin = [low for low, _ in rows] == [0, *ends[:-1]] and bool(ends) and ends[-1] == value.shape[dim]
        if len(rows) > 1 and adjoin:
            found[_ends([length for _, length in rows])].append(node)
    return found


def _copy(graph: fx.Graph, joins: Sequence[fx.Node], taken: Sequence[fx.Node]) -> int:
    """How many of `taken` come of `joins`, through what can be copied for each piece, and is."""
    begins = {node for node in walk_back(taken) if node.op == "placeholder" and not is_module_state(node)}
    facts = TokenFacts(graph, begins)
    window = Window(facts, 0, len(facts.nodes))
    after = window.after(joins)
    ends = [node for node in taken if node in after]
    between = {node for node in window.before(ends) if node in after} - set(joins)
    if not all(ops.op_name(node) in MADE or keeps_rows(node) for node in between) or any(map(is_random, between)):
        return 0
    if between:
        region, pieces = CopiedRegion((), (), between, window), len(_lengths(joins[0]))
        units = region.units()
        if units < pieces or _ends([high - low for low, high in intervals(units, pieces)]) != _ends(_lengths(joins[0])):
            return 0
        copy_for_pieces(graph, region, pieces)
    return len(ends)


def _take_pieces(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        lengths, value = _lengths(node), ops.tensor(node)
        if not lengths or value is None:
            continue
        places = {(low, high - low): part for (low, high), part in zip(_pairs(lengths), node.args[0], strict=True)}
        taken = [user for user in node.users if _narrows(user, node, row_dim(value)) and _rows(user) in places]
        for user in taken:
            user.replace_all_uses_with(places[_rows(user)])
            graph.erase_node(user)
        if taken and node.users:
            with graph.inserting_after(node):
                node.replace_all_uses_with(graph.node_copy(node))
        if not node.users:
            graph.erase_node(node)


def _pairs(lengths: Sequence[int]) -> list[tuple[int, int]]:
    return list(pairwise(accumulate(lengths, initial=0)))


def _narrows(node: fx.Node, source: fx.Node, dim: int | None) -> bool:
    """Whether `node` takes rows of `source`, which are its dimension `dim`, as a cut by tokens writes that."""
    args = node.args
    numbers = len(args) == 4 and type(args[2]) is int and type(args[3]) is int
    return ops.op_name(node) == "narrow" and args[0] is source and numbers and args[1] == dim


def _rows(narrow: fx.Node) -> tuple[int, int]:
    """The first row that is taken, and how many."""
    low, length = narrow.args[2:]
    return low, length  # type: ignore[return-value]


def _dim(cat: fx.Node, count: int) -> int:
    given = cat.args[1] if len(cat.args) > 1 else cat.kwargs.get("dim", 0)
    return given % count if isinstance(given, int) and count else -1
