# SPDX-License-Identifier: Apache-2.0
"""Proof that a graph returns what it did, some of it in flight: what nothing here reads, and the next graph waits for.

Contract: `returned` is called before waits are left to the next graph, `verify_in_flight` after it; graphs are looked
at, never what the pass meant to do. A copy in another shape, and a view in that shape, are the same: what a collective
gives is contiguous.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from farskip_compile.errors import VerificationError
from farskip_compile.passes.graph import comms, ops
from farskip_compile.passes.residual.tags import CUSTOM, DEPARTS
from farskip_compile.passes.schedule.in_flight import land_if_recomputed

COPIES = frozenset(["clone", "copy", "view", "reshape", "_unsafe_view"])


@dataclass(frozen=True)
class Outputs:
    """What a graph returns, and what it calls."""

    names: tuple[str | None, ...]
    waits: dict[str, tuple[str, bool, torch.Tensor | None]]
    """For each output that is a wait, or a copy or view of one: what that waits for, whether the next graph waits for
    it, and what it looks like."""
    nodes: dict[str, tuple[str, ...]]
    """What each is made of."""


def returned(graph: fx.Graph) -> Outputs:
    """What `graph` returns now."""
    values = _values(graph)
    waits = {}
    for one in values:
        wait = _source(one)
        if wait is not None and one is not None and comms.is_wait(wait):
            promised = DEPARTS in wait.meta.get(CUSTOM, {})
            waits[one.name] = (wait.all_input_nodes[0].name, promised, ops.tensor(one))
    names = tuple(one.name if one is not None else None for one in values)
    return Outputs(names, waits, {node.name: tuple(one.name for one in node.all_input_nodes) for node in graph.nodes})


def verify_in_flight(graph: fx.Graph, before: Outputs) -> None:
    """Check that `graph` returns what it did when `before` was recorded.

    Raises:
        VerificationError: naming the value.
    """
    now = _values(graph)
    gone = before.nodes.keys() - {node.name for node in graph.nodes}
    allowed: set[str] = set()
    for value, old in zip(now, before.names, strict=True):
        name = value.name if value is not None else None
        if name == old:
            continue
        launch, promised, like = before.waits.get(str(old), ("", False, None))
        flying = _source(value)
        if not promised or value is None or flying is None or flying.name != launch or old not in gone:
            raise _error(f"it returns {name!r} in place of {old!r}")
        found = ops.tensor(value)
        if found is None or like is None or not ops.same_shape(found, like) or found.dtype != like.dtype:
            raise _error(f"it returns {name!r} in place of {old!r}, in another shape")
        while old != launch:
            allowed.add(str(old))
            old = before.nodes[str(old)][-1]
        for user in _readers(flying):
            if user.op != "output" and user.target is not land_if_recomputed():
                raise _error(f"{user.name!r} reads {flying.name!r}, for which nothing waits any more")
    if gone - allowed:
        raise _error(f"{min(gone - allowed)!r} has been removed from it")


def _source(node: fx.Node | None) -> fx.Node | None:
    """What `node` is a copy or a view of, or it itself."""
    while node is not None and ops.op_name(node) in COPIES:
        source = node.args[0]
        if ops.op_name(node) == "copy":  # of the second argument, into memory like the first
            source = node.args[1]
            one, other = ops.tensor(node), ops.tensor(source) if isinstance(source, fx.Node) else None
            if one is None or other is None or one.dtype != other.dtype or not ops.same_shape(one, other):
                return node
        node = source if isinstance(source, fx.Node) else None
    return node


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """What reads `node`, or a view of it."""
    for user in node.users:
        if ops.op_name(user) == "view":
            yield from _readers(user)
        else:
            yield user


def _values(graph: fx.Graph) -> list[fx.Node | None]:
    (output,) = graph.find_nodes(op="output")
    values = output.args[0] if isinstance(output.args[0], tuple | list) else [output.args[0]]
    return [one if isinstance(one, fx.Node) else None for one in values]


def _error(reason: str) -> VerificationError:
    return VerificationError(
        f"a layer that returns a part of its stream in flight: {reason}",
        way_out="nothing was compiled; please report this: it is a defect of farskip-compile",
    )
