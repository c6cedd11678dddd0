# SPDX-License-Identifier: Apache-2.0
"""What an edited graph claims: that a new value is what an old one was.

Contract: nodes that are in both graphs, by name, must make the same call. Where one of them is given a new value in
place of an old one that is gone, this is a claim, for whoever verifies the edit to check; anything else is an error. If
all claims hold, what the nodes in both graphs give is what it was, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx


def claims_of(
    new: Mapping[str, fx.Node], old: Mapping[str, fx.Node], error: Callable[[fx.Node, str], Exception]
) -> dict[str, fx.Node]:
    """By the name of an old value that is gone: what is read in its place.

    Args:
        new: the nodes of the graph, by name.
        old: those of the graph as it was.
        error: what is raised of a node, with the reason.
    """
    claims: dict[str, fx.Node] = {}

    def compare(one: Any, other: Any, node: fx.Node) -> None:
        if isinstance(other, fx.Node):
            same = isinstance(one, fx.Node) and (one.name == other.name or claims.setdefault(other.name, one) is one)
            if not same or (one.name != other.name and other.name in new):
                raise error(node, f"it is given {getattr(one, 'name', one)!r} in place of {other.name!r}")
        elif isinstance(other, tuple | list) and isinstance(one, tuple | list) and len(one) == len(other):
            for mine, theirs in zip(one, other, strict=True):
                compare(mine, theirs, node)
        elif isinstance(other, Mapping) and isinstance(one, Mapping) and one.keys() == other.keys():
            for key in other:
                compare(one[key], other[key], node)
        elif isinstance(other, slice) and isinstance(one, slice):
            compare((one.start, one.stop, one.step), (other.start, other.stop, other.step), node)
        elif type(one) is not type(other) or (one is not other and one != other):
            raise error(node, f"it is given {one!r} in place of {other!r}")

    for name, node in new.items():
        if name in old:
            if node.op != old[name].op or node.target != old[name].target:
                raise error(node, "its call is not what it was")
            compare((node.args, node.kwargs), (old[name].args, old[name].kwargs), node)
    return claims
