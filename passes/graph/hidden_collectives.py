"""Which collectives a node of a Dynamo graph launches, including those that appear only after differentiation.

In:    one node.
Out:   the names of the collectives that it launches in the forward pass, as the functional operators are called.
Never: looks further than into the bodies of the node itself; decides anything: the names are for reports.

A launch is a collective itself. An `autograd.Function` is a node with a body for each direction; the first one counts.
A redistribution of a DTensor becomes a collective only after differentiation: its placements before and after show
which.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx

from farskip_compile.passes.graph import ops
from farskip_compile.passes.graph.walk import bodies


def collectives_of(node: fx.Node) -> Iterator[str]:
    """The collectives that `node` launches, in order."""
    name = ops.op_name(node)
    if ops.is_collective(node):
        yield name.split("::")[1]
    elif name.startswith("higher_order::"):
        found = bodies(node)
        for body in found[:1] if name == "higher_order::autograd_function_apply" else found:
            for inner in body.graph.nodes:
                yield from collectives_of(inner)
    elif ops.is_redistribution(node):
        yield from _between(_placements(node.args[0]), _placements(node))


def _placements(value: object) -> tuple[Any, ...]:
    """The placements of a DTensor on its mesh; empty for anything else."""
    return tuple(getattr(ops.fake(value), "placements", ())) if isinstance(value, fx.Node) else ()


def _between(before: tuple[Any, ...], after: tuple[Any, ...]) -> Iterator[str]:
    """The collectives that bring a DTensor from one placement to the other (none: whole), by mesh dimension."""
    for index, old in enumerate(before):
        new = after[index] if after else None
        if old == new or old.is_replicate():
            continue
        whole = new is None or new.is_replicate()
        if old.is_partial():
            yield "all_reduce" if whole else "reduce_scatter_tensor"
        elif old.is_shard():
            yield "all_gather_into_tensor" if whole else "all_to_all_single"
