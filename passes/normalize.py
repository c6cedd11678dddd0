"""First pass: one name for each value, and nothing hidden in sub-graphs.

In:    the graph that Dynamo hands to a backend.
Out:   the same function, bit for bit, in a form in which dataflow is readable off the edges.
Never: changes a value, a dtype, what is recomputed, or the order of writes to graph inputs.

Algorithm: open activation checkpoints (`open_checkpoints`), write collectives along inner dimensions as moves of axes
(`axis_moves`), then single assignment (`single_assignment`), then lint.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from farskip_compile.passes.axis_moves import move_axes
from farskip_compile.passes.open_checkpoints import open_checkpoints
from farskip_compile.passes.single_assignment import assign_once


@dataclass(frozen=True)
class Normalized:
    """What the pass did."""

    checkpoints_opened: int
    writes_replaced: int


def normalize(module: fx.GraphModule) -> Normalized:
    """Normalise `module` in place.

    Raises:
        UnsupportedPatternError: a checkpoint that can't be opened without changing what is recomputed.
    """
    opened = open_checkpoints(module)
    move_axes(module.graph)
    replaced = assign_once(module.graph)
    module.graph.lint()
    return Normalized(checkpoints_opened=opened, writes_replaced=replaced)
