# SPDX-License-Identifier: Apache-2.0
"""What shows a layer that no sum holds: something added to what it was computed from, in whatever form.

Contract: looks at edges, shapes and weights only; shares no code with detection.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence, Set

import torch
from torch import fx

from farskip_compile._compat import same_dim
from farskip_compile.passes.graph import effects, ops, user_calls
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
                return node, f"{user_calls.shown(node)!r}, of which nothing is known, is given weights"
            if is_unknown(node) and _combines(node, plain, weighted):
                return (
                    node,
                    f"{user_calls.shown(node)!r}, of which nothing is known, may add a value to what comes of it",
                )
            if node in combined:
                return node, f"{user_calls.shown(node)!r} combines a value and what is computed from it with weights"
        if contracts or not weighted.isdisjoint(inputs):
            weighted.add(node)
        if not contracts and not plain.isdisjoint(inputs):
            plain.add(node)
    return None


def find_layer_with_other_rows(
    nodes: Iterable[fx.Node], plain: Set[fx.Node], unfinished: bool = False
) -> fx.Node | None:
    """Return the first value, in any shape, that a layer makes.

    It is in `plain`, the values that the stream is made of, or that are made of it, without weights in between; and it
    is made of such a value and of what is computed from one with weights and by mixing tokens or choosing experts.
    Heads that work on each row by itself may have skip connections, too, and are left alone; but what does so behind a
    layer that is `unfinished`, since tokens were mixed in it last, is its feed-forward.
    """
    carried, weighted, works = set(plain), set[fx.Node](), set(plain if unfinished else ())
    for node in nodes:
        inputs = node.all_input_nodes
        depends = not carried.isdisjoint(inputs) or not weighted.isdisjoint(inputs)
        if not works.isdisjoint(inputs) or (depends and _mixes_or_chooses(node)):
            works.add(node)
        if not weighted.isdisjoint(inputs) or (depends and has_weights(node)):
            weighted.add(node)
        elif depends and not is_contraction(node):
            carried.add(node)
        if node not in plain or ops.op_name(node) in PRODUCTS:
            continue
        if any(arg in carried and arg not in weighted for arg in inputs) and any(
            arg in works and arg in weighted for arg in inputs
        ):
            return node
    return None


def is_normed(node: fx.Node, activations: Set[fx.Node]) -> bool:
    """Return whether `node` normalises, in one operator or by a product with a statistic of the same values."""
    if ops.op_name(node).endswith("norm"):
        return True
    return ops.op_name(node) in PRODUCTS and sum(arg in activations for arg in node.all_input_nodes) > 1


def _mixes_or_chooses(node: fx.Node) -> bool:
    if ops.is_attention(node) or ops.is_scan(node) or ops.is_selection(node):
        return True
    return is_contraction(node) and not has_weights(node)


def _combines(node: fx.Node, plain: Set[fx.Node], weighted: Set[fx.Node]) -> bool:
    """Whether one argument is plain and another one weighted, and they are not multiplied."""
    if ops.op_name(node) in PRODUCTS:
        return False
    inputs = node.all_input_nodes
    return any(a in plain and b in weighted for a in inputs for b in inputs if a is not b)


def _keeps_shape(node: fx.Node, shape: Sequence[int | torch.SymInt]) -> bool:
    """Return whether the value of `node`, one of several, or what it writes to has the stream's shape."""
    found = ops.fake(node)
    values = [*(found if isinstance(found, tuple | list) else [found]), *map(ops.tensor, effects.mutated_args(node))]
    return any(
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.dim() == len(shape)
        and all(same_dim(a, b) for a, b in zip(value.shape, shape, strict=True))
        for value in values
    )
