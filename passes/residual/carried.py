# SPDX-License-Identifier: Apache-2.0
"""What is known of a value that another graph has computed: the base of the stream, or a term that came in apart.

Contract: such a value is an input here, so nothing shows what it is; the graph that it left has seen it. `boundary`
notes that on the node, and only `stream`, `kinds` and the tables ask. A graph of a whole model has no such node.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from farskip_compile.passes.residual.table import TermKind

KEY = "farskip_carried"
"""Of a node's `meta`."""


@dataclass(frozen=True)
class CarriedValue:
    """A value of an earlier graph."""

    kind: TermKind
    """EMBEDDING for what does not come in apart: all other terms."""
    places: tuple[int, ...] = ()
    """Places of what it holds among the terms that left the earlier graph apart; none if it is settled."""
    age: int = 0
    """Layers between its own and the last one that an earlier graph has begun."""
    evidence: str = ""
    """What showed its kind."""
    is_base: bool = True
    """Of what is settled: whether the stream begins with it. Other settled terms are added later, in the order of the
    model."""


def carried(nodes: Iterable[fx.Node]) -> CarriedValue | None:
    """What is known of the first of `nodes` of which something is."""
    return next((node.meta[KEY] for node in nodes if KEY in node.meta), None)
