# SPDX-License-Identifier: Apache-2.0
"""Walks over a graph, along its edges: backward from some nodes, forward from a property, into nested graphs.

Contract: no walk changes the graph or knows an operator. Each visits a node at most once, so all are linear. `inputs`
says what a node depends on: its arguments, unless a caller follows data alone (`Stream.inputs`) or summands.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from operator import attrgetter

import torch
from torch import fx

Inputs = Callable[[fx.Node], Collection[fx.Node]]
Predicate = Callable[[fx.Node], bool]

arguments: Inputs = attrgetter("all_input_nodes")
"""The nodes among the arguments of a node."""


def walk_back(
    start: Iterable[fx.Node],
    stop: Predicate = lambda node: False,
    inputs: Inputs = arguments,
    border: dict[fx.Node, None] | None = None,
) -> Iterator[fx.Node]:
    """`start` and all that it depends on, depth first, up to the nodes where `stop` holds.

    Args:
        start: where to begin.
        stop: the walk neither yields such a node nor looks past it.
        inputs: what a node depends on.
        border: filled with the nodes at which the walk stopped, in the order in which it reached them.
    """
    seen: set[fx.Node] = set()
    stack = list(start)
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if not stop(node):
            stack.extend(inputs(node))
            yield node
        elif border is not None:
            border[node] = None


def spread(nodes: Iterable[fx.Node], begins: Predicate, inputs: Inputs = arguments) -> set[fx.Node]:
    """The nodes where a property begins, and those that inherit it from an input.

    Args:
        nodes: all nodes that can have the property, in graph order.
        begins: whether a node has it by itself.
        inputs: what a node inherits from.
    """
    found: set[fx.Node] = set()
    for node in nodes:
        if not found.isdisjoint(inputs(node)) or begins(node):
            found.add(node)
    return found


def bodies(node: fx.Node) -> list[fx.GraphModule]:
    """The graphs that a higher-order operator is given; of an `autograd.Function` the forward one comes first."""
    owner = node.graph.owning_module
    found = [getattr(owner, str(arg.target), None) for arg in node.all_input_nodes if arg.op == "get_attr"]
    return [body for body in found if isinstance(body, fx.GraphModule)]


def fresh_like(value: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A fake tensor like `value`, with memory of its own: for a node that is copied."""
    mode = getattr(value, "fake_mode", None)
    if mode is None:
        return torch.empty_like(value, dtype=dtype, device="meta")
    with mode:
        return torch.empty_like(value, dtype=dtype)
