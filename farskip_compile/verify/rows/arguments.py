# SPDX-License-Identifier: Apache-2.0
"""The arguments of a node, and what is known of them.

Contract: pure questions about one node. What can't be found is None, and rules then claim less.
"""

from __future__ import annotations

import torch
from torch import fx

from farskip_compile.passes.graph import ops
from farskip_compile.passes.graph.operator_calls import INPUT, argument
from farskip_compile.verify.rows.state import FREE, FactsOf, RowFacts


def first_of(node: fx.Node, given: FactsOf) -> tuple[fx.Node | None, RowFacts]:
    """Return the first argument, and what is known of it."""
    first = argument(node, 0, INPUT)
    return (first, given(first)) if isinstance(first, fx.Node) else (None, FREE)


def others(node: fx.Node, first: object) -> list[fx.Node]:
    """Return the nodes among the arguments, but for one."""
    return [arg for arg in node.all_input_nodes if arg is not first]


def is_inexact(node: fx.Node) -> bool:
    """Return whether the value of `node` is a tensor of floating or complex numbers."""
    value = ops.tensor(node)
    return value is not None and is_data(value)


def is_data(value: torch.Tensor) -> bool:
    """Return whether a tensor is of floating or complex numbers: what is computed, not what is decided."""
    return value.is_floating_point() or value.is_complex()
