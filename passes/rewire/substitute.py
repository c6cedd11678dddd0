# SPDX-License-Identifier: Apache-2.0
"""Build "this residual value with these terms set to zero" out of nodes that the graph already has.

In:    a residual value and the terms to leave out.
Out:   a node with that value; every sub-expression that holds none of the terms is shared, `0 + y` is `y`.
Never: changes an existing node; computes anything that the value itself does not compute.

This keeps the order of additions of the model, so the result is bit-equal to a module written by hand in that order:
from (x + a) + (r + s) without r comes (x + a) + s. Casts, multipliers and collectives in between are applied anew.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field

from torch import fx

from farskip_compile.passes.graph import ops
from farskip_compile.passes.graph.walk import fresh_like
from farskip_compile.passes.residual.stream import Stream
from farskip_compile.passes.residual.termset import TermSet


@dataclass
class Substitution:
    """Builds values with terms left out; the same terms of the same value give the same node."""

    stream: Stream
    graph: fx.Graph
    made: dict[tuple[fx.Node, TermSet, bool], fx.Node | None] = field(default_factory=dict)

    def without(self, node: fx.Node, dropped: TermSet, *, bare: bool = False) -> fx.Node | None:
        """`node` with the terms in `dropped` set to zero; None if nothing is left.

        With `bare`, also without the constants that are added to sums which hold some of them: for the second part of a
        sum that is split in two.

        Each new node is placed right after the one that it replaces, so that any reader of that one can use it.
        """
        terms = self.stream.terms_of(node)
        dropped = dropped & terms
        if not dropped:
            return node
        if not terms - dropped:
            return None
        key = (node, dropped, bare)
        if key not in self.made:
            parts = [self.without(arg, dropped, bare=bare) for arg in self.stream.below[node]]
            is_shift = len(parts) == 1 and ops.op_name(node) == "add"
            self.made[key] = self._rebuild(node, [*parts, None] if bare and is_shift else parts)
        return self.made[key]

    def _rebuild(self, node: fx.Node, parts: list[fx.Node | None]) -> fx.Node | None:
        old = self.stream.below[node]
        if len(parts) == 2 and (parts[0] is None or parts[1] is None):
            rest = parts[1] if parts[0] is None else parts[0]
            value = ops.tensor(node)
            assert value is not None
            if rest is self.stream.flow.addends.get(node):
                return rest  # a mark, which `accumulations.lower` writes out
            if rest is not None and (kept := ops.tensor(rest)) is not None and kept.dtype != value.dtype:
                rest = self._place(self.graph.call_method, ("to", (rest, value.dtype)), node)
            if parts[0] is None and ops.op_name(node) == "sub":
                rest = self._place(self.graph.call_function, (operator.neg, (rest,)), node)
            return rest
        replacement = {arg: part for arg, part in zip(old, parts, strict=True) if part is not None}
        args = fx.map_arg(node.args, lambda arg: replacement.get(arg, arg))
        return self._place(self.graph.create_node, (node.op, node.target, args, dict(node.kwargs)), node)

    def _place(self, create: object, arguments: tuple[object, ...], like: fx.Node) -> fx.Node:
        last = self._last.get(like, like)
        with self.graph.inserting_after(last):
            new: fx.Node = create(*arguments)  # type: ignore[operator]
        self._last[like] = new
        new.meta = dict(like.meta)
        new.meta.pop("farskip_storage", None)
        value = ops.tensor(like)
        if value is not None:
            new.meta["example_value"] = fresh_like(value)
        return new

    _last: dict[fx.Node, fx.Node] = field(default_factory=dict)
