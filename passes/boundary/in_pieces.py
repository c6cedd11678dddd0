# SPDX-License-Identifier: Apache-2.0
"""An exchange that leaves in flight, in the pieces that it will be cut in after differentiation: each a part by itself.

    one piece     launch ───────────────────► part      │ wait ──► the rest of the tail
    two pieces    launch 1 ─────────────────► part 1    │ wait 1 ─┬► cat ──► the rest of the tail
                      launch 2 ─────────────► part 2    │ wait 2 ─┘

In:    a Dynamo graph, and in it a wait that only the next graph needs.
Out:   `ArrivedPieces`: the rows of each piece, which `cut` takes in the graph, and `join` puts together in the tail.
Never: decides what is cut: `passes.pieces` does, after differentiation. Where it cuts other rows, or none, the parts
       are waited for in their own graph.

Algorithm: the best axis of the combine, chosen as for the dispatch (`pieces.region.candidates`), with rows in a
dimension of their own. Exchanges whose sizes data decides are in pieces already.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from farskip_compile.passes.graph import comms, ops
from farskip_compile.passes.graph.walk import fresh_like
from farskip_compile.passes.pieces.axis import CutAxis, intervals
from farskip_compile.passes.pieces.notes import is_piece
from farskip_compile.passes.pieces.region import Exchange, brings_numbers, candidates
from farskip_compile.passes.pieces.rules import NotSeparableError


@dataclass(frozen=True)
class ArrivedPieces:
    """The rows of `wait`, in pieces."""

    wait: fx.Node
    shape: Sequence[int]
    """That shows the rows in a dimension of their own; at most one -1."""
    dim: int
    """Which that is."""
    lengths: Sequence[int]
    """Rows of each piece."""
    whole: Sequence[int]
    """The shape of the wait; at most one -1."""

    def cut(self, before: fx.Node) -> list[fx.Node]:
        """Each piece as a value of its own, in the graph of the wait."""
        graph, value = before.graph, ops.tensor(self.wait)
        assert value is not None
        with graph.inserting_before(before):
            source = graph.call_method("view", (self.wait, *self.shape))
            parts = graph.call_method("split", (source, list(self.lengths), self.dim))
            taken = [graph.call_function(operator.getitem, (parts, number)) for number in range(len(self.lengths))]
            copies = [graph.call_method("clone", (one,)) for one in taken]
        fake: Any = fresh_like(value).view(*self.shape)
        views = fake.split(list(self.lengths), self.dim)
        values = [fake, views, *views, *(fresh_like(one) for one in views)]
        for node, one in zip([source, parts, *taken, *copies], values, strict=True):
            node.meta = {"example_value": one}
        return copies

    def join(self, tail: fx.Graph, waits: Sequence[fx.Node]) -> fx.Node:
        """What was waited for, of its pieces, in the graph of a tail."""
        whole = tail.call_function(torch.cat, (list(waits), self.dim))
        return tail.call_method("view", (whole, *self.whole))


LaterCount = Callable[[fx.Node], int]
"""In how many pieces a launch will be after differentiation."""


def whole(launch: fx.Node) -> int:
    """That it won't be in pieces."""
    return 1


def in_pieces(wait: fx.Node, how_many: LaterCount) -> ArrivedPieces | None:
    """The pieces of what `wait` is for; None if it will stay whole, or is a piece itself."""
    launch, value = wait.all_input_nodes[0], ops.tensor(wait)
    if value is None or not comms.is_all_to_all(launch) or is_piece(launch) or brings_numbers(launch):
        return None
    try:
        ranks = Exchange(launch, [wait]).ranks
    except NotSeparableError:
        return None
    number = how_many(launch)
    found = candidates([wait], ranks, number) if number > 1 else []
    if not found:
        return None
    axis: CutAxis = found[0]
    alone, dim = axis.alone(value.shape, axis.size)
    shape, whole = _with_one_open(alone), _with_one_open(value.shape)
    if shape is None or whole is None:
        return None
    return ArrivedPieces(wait, shape, dim, [high - low for low, high in intervals(axis.size, number)], whole)


def _with_one_open(sizes: Sequence[int | torch.SymInt]) -> list[int] | None:
    """`sizes` with -1 for a symbol; None if there are several."""
    found = [size if isinstance(size, int) else -1 for size in sizes]
    return found if found.count(-1) < 2 else None
