# SPDX-License-Identifier: Apache-2.0
"""Claims of an edited graph: a new value stands for an old one that is gone.

Contract: nodes that are in both graphs, by name, must make the same call. Where one of them is given a new value in
place of an old one that is gone, this is a claim, for whoever verifies the edit to check; anything else is an error. If
all claims hold, what the nodes in both graphs give is what it was, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

NodeError = Callable[[fx.Node, str], Exception]
"""Makes the error that is raised for a node, from the reason."""


def claims_of(new: Mapping[str, fx.Node], old: Mapping[str, fx.Node], error: NodeError) -> dict[str, fx.Node]:
    """Map the name of each old value that is gone, and still needed, to the new value that is read in its place.

    Args:
        new: the nodes of the graph, by name.
        old: those of the graph as it was.
        error: makes what is raised.
    """
    claims: dict[str, fx.Node] = {}

    def compare_node(one: Any, other: fx.Node, node: fx.Node) -> None:
        is_same = isinstance(one, fx.Node) and (one.name == other.name or claims.setdefault(other.name, one) is one)
        if not is_same or (one.name != other.name and other.name in new):
            raise error(node, f"it is given {getattr(one, 'name', one)!r} in place of {other.name!r}")

    for name, node in new.items():
        if name in old:
            compare_calls(node, old[name], compare_node, error)
    return claims


def compare_calls(
    node: fx.Node, old: fx.Node, compare_node: Callable[[Any, fx.Node, fx.Node], None], error: NodeError
) -> None:
    """Check that a node makes the call that it made, by `compare_node` for arguments that were nodes."""
    if node.op != old.op or node.target != old.target:
        raise error(node, "its call is not what it was")
    compare_arguments((node.args, node.kwargs), (old.args, old.kwargs), node, compare_node, error)


def compare_arguments(
    new: Any, old: Any, node: fx.Node, compare_node: Callable[[Any, fx.Node, fx.Node], None], error: NodeError
) -> None:
    """Check that the arguments `new` of `node` are the `old` ones, by `compare_node` where these were nodes."""
    if isinstance(old, slice) and isinstance(new, slice):
        new, old = (new.start, new.stop, new.step), (old.start, old.stop, old.step)
    if isinstance(old, fx.Node):
        compare_node(new, old, node)
    elif isinstance(old, tuple | list) and isinstance(new, tuple | list) and len(new) == len(old):
        for one, other in zip(new, old, strict=True):
            compare_arguments(one, other, node, compare_node, error)
    elif isinstance(old, Mapping) and isinstance(new, Mapping) and new.keys() == old.keys():
        for key in old:
            compare_arguments(new[key], old[key], node, compare_node, error)
    elif new is not old and (type(new) is not type(old) or new != old):
        raise error(node, f"it is given {new!r} in place of {old!r}")
