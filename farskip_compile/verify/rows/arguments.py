# SPDX-License-Identifier: Apache-2.0
"""How calls give their arguments: by position, or by any of the names that PyTorch takes.

Contract: pure questions about one node. NumPy's names are accepted by PyTorch, too: `x` or `a` for `input`, `axis` for
`dim`. What can't be found is None, and rules then claim less.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx

from farskip_compile.passes.graph import ops
from farskip_compile.verify.rows.state import FREE, FactsOf, RowFacts

INPUT = ("input", "self", "x", "a", "x1", "tensors")
DIM = ("dim", "axis", "dims")


def argument(node: fx.Node, position: int, names: Sequence[str]) -> Any:
    """The argument at a position, or of one of these names."""
    if position < len(node.args):
        return node.args[position]
    return next((node.kwargs[name] for name in names if name in node.kwargs), None)


def first_of(node: fx.Node, given: FactsOf) -> tuple[fx.Node | None, RowFacts]:
    """The first argument, and what is known of it."""
    first = argument(node, 0, INPUT)
    return (first, given(first)) if isinstance(first, fx.Node) else (None, FREE)


def others(node: fx.Node, first: object) -> list[fx.Node]:
    """The nodes among the arguments, but for one."""
    return [arg for arg in node.all_input_nodes if arg is not first]


def is_number(value: object) -> bool:
    """A plain integer; a bool is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def numbers(args: Iterable[object]) -> list[int]:
    """The integers among arguments, which may be given one by one or in a list."""
    flat = [one for arg in args for one in (arg if isinstance(arg, tuple | list) else (arg,))]
    return [one for one in flat if isinstance(one, int) and not isinstance(one, bool)]


def dim_of(node: fx.Node, position: int, default: int | None, rank: int) -> int | None:
    """The one dimension, of `rank`, that an operator works along; None if it can't be told."""
    dim = argument(node, position, DIM)
    dim = default if dim is None else dim
    return int(dim) % rank if dim is not None and is_number(dim) and rank > 0 else None


def dims_of(node: fx.Node, position: int, default: Sequence[int] | None, rank: int) -> list[int]:
    """The dimensions, of `rank`, that an operator works along; all of them if it does not say which, and for `default`
    None."""
    given = argument(node, position, DIM)
    dims = default if given is None else given if isinstance(given, tuple | list) else [given]
    if not dims or rank == 0 or not all(map(is_number, dims)):
        return list(range(rank))
    return [dim % rank for dim in dims]


def all_dims_of(node: fx.Node, position: int, rank: int) -> list[int]:
    """As `dims_of`, of an operator whose dimensions may be given one by one."""
    dims = numbers(node.args[position:] or (argument(node, position, DIM),))
    return [dim % rank for dim in dims] if dims and rank else list(range(rank))


def is_inexact(node: fx.Node) -> bool:
    """Whether the value of `node` is a tensor of floating or complex numbers."""
    value = ops.tensor(node)
    return value is not None and is_data(value)


def is_data(value: torch.Tensor) -> bool:
    """Whether a tensor is of floating or complex numbers: what is computed, not what is decided."""
    return value.is_floating_point() or value.is_complex()
