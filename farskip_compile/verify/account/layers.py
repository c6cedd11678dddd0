# SPDX-License-Identifier: Apache-2.0
"""What shows a layer that no sum holds: something added to what it was computed from, in whatever form.

Contract: looks at edges, shapes and weights only; shares no code with detection.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence, Set

import torch
from torch import fx

from farskip_compile._compat import same_dim
from farskip_compile.passes.graph import ops
from farskip_compile.verify.account.weights import has_weights
from farskip_compile.verify.rows.rules import is_contraction, is_unknown

PRODUCTS = ops.PRODUCTS | {"mul_", "div_", "imul", "itruediv"}


def find_layer(
    nodes: Iterable[fx.Node], sources: Collection[fx.Node], shape: Sequence[int | torch.SymInt]
) -> tuple[fx.Node, str] | None:
    """A value of the stream's shape that is made of `sources` as they are and of what is computed from them.

    A gate is no such value, but what is added to it may make one: `x * (1 - g) + y`.
    """
    plain, weighted, combined = set(sources), set[fx.Node](), set[fx.Node]()
    for node in nodes:
        inputs = node.all_input_nodes
        if node in sources or (plain.isdisjoint(inputs) and weighted.isdisjoint(inputs)):
            continue
        contracts = is_contraction(node)
        if not contracts and (not combined.isdisjoint(inputs) or _combines(node, plain, weighted)):
            combined.add(node)
        if _keeps_shape(node, shape):
            if is_unknown(node) and has_weights(node):
                return node, f"{ops.shown(node)!r}, of which nothing is known, is given weights"
            if node in combined:
                return node, f"{ops.shown(node)!r} combines a value and what is computed from it with weights"
        if contracts or not weighted.isdisjoint(inputs):
            weighted.add(node)
        if not contracts and not plain.isdisjoint(inputs):
            plain.add(node)
    return None


def _combines(node: fx.Node, plain: Set[fx.Node], weighted: Set[fx.Node]) -> bool:
    """Whether one argument is plain and another one weighted, and they are not multiplied."""
    if ops.op_name(node) in PRODUCTS:
        return False
    inputs = node.all_input_nodes
    return any(a in plain and b in weighted for a in inputs for b in inputs if a is not b)


def _keeps_shape(node: fx.Node, shape: Sequence[int | torch.SymInt]) -> bool:
    """Whether the value of `node`, or one of several, has the stream's shape."""
    found = ops.fake(node)
    values = found if isinstance(found, tuple | list) else [found]
    return any(
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.dim() == len(shape)
        and all(same_dim(a, b) for a, b in zip(value.shape, shape, strict=True))
        for value in values
    )
