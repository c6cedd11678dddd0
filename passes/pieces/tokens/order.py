# SPDX-License-Identifier: Apache-2.0
"""Which operators leave the rows of their arguments in order, and which bring rows together.

Contract: pure questions about one node, answered from the line of its operator (`graph.operators`) and the dimensions
that it is given. They decide what is tried, not what is right: a wrong answer is noticed by the proof
(`verify.tokens`), which has rules of its own.

The rows of a tensor are its first dimension that has more than one entry: a batch of one sequence has as many rows as
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from farskip_compile.passes.graph import comms, ops
from farskip_compile.passes.graph.operator_calls import argument, dim_beside_index, dims_of, order_of
from farskip_compile.passes.graph.operators import Effect, Operator, names_with, operator_named

MADE = names_with(Effect.NEW, Effect.LIKE)
"""New tensors; those of a size that was given may have a row for each token."""
TURNS = frozenset([Effect.TRANSPOSE, Effect.PERMUTE, Effect.MOVE])
BESIDE_INDEX = frozenset([Effect.PICK, Effect.PUT, Effect.PUT_ROWS, Effect.ADD_ROWS])


def row_dim(value: torch.Tensor) -> int | None:
    """Return the dimension along which `value` has rows; None for a single row, or where a size is not known."""
    sizes: Sequence[int | torch.SymInt] = value.shape
    for dim, size in enumerate(sizes):
        if not isinstance(size, int):
            return None
        if size > 1:
            return dim
    return None


def rows_of(node: fx.Node) -> int | None:
    """Return how many rows the value of `node` has; None if it is not a tensor, or that is not known."""
    value = ops.tensor(node)
    dim = row_dim(value) if value is not None else None
    return int(value.shape[dim]) if value is not None and dim is not None else None


def has_no_rows(node: fx.Node) -> bool:
    """Return whether only data decides how many rows there are."""
    value = ops.tensor(node)
    return value is not None and not all(isinstance(size, int) for size in value.shape)


def chooses(node: fx.Node) -> bool:
    """Return whether `node` picks the best of some features: experts, or groups of them."""
    return ops.op_name(node) in ops.CHOICES_OF_EXPERTS


def mixes(node: fx.Node) -> bool:
    """Return whether rows meet in `node`, or change places."""
    if comms.is_all_to_all(node):
        return True
    name = ops.op_name(node)
    operator, value = operator_named(name), _first(node)
    if operator.effect in (Effect.SORT, Effect.COUNT):
        return True
    if operator.effect in (Effect.ITEM, Effect.INDEX):
        return any(_is_mask(arg) for arg in node.all_input_nodes[1:])
    if not operator.orders and not name.rstrip("_").endswith("scatter_add"):
        return False
    rows = (row_dim(value) or 0) if value is not None else 0
    dims = _dims(node, operator, value.dim() if value is not None else 0)
    return not dims or any(dim <= rows for dim in dims)


def _first(node: fx.Node) -> torch.Tensor | None:
    return ops.tensor(node.all_input_nodes[0]) if node.all_input_nodes else None


def _is_mask(node: fx.Node) -> bool:
    value = ops.tensor(node)
    return value is not None and value.dtype == torch.bool


def keeps_rows(node: fx.Node) -> bool:
    """Return whether each row of the value of `node` is made of one row of each argument."""
    operator, value = operator_named(ops.op_name(node)), _first(node)
    if operator.effect is Effect.ITEM:
        return value is None or _of_features(node.args[1], row_dim(value) or 0)  # of a tuple, or slices
    if not operator.cut:
        return False
    if value is None or not _works_along(operator):
        return not _works_along(operator)
    dims = _dims(node, operator, value.dim())
    return bool(dims) and all(dim > (row_dim(value) or 0) for dim in dims)


def _works_along(operator: Operator) -> bool:
    """Return whether the calls of an operator name dimensions that it works along."""
    return operator.at is not None or operator.effect in BESIDE_INDEX


def keeps_batch(node: fx.Node) -> bool:
    """Return whether each sequence of the value of `node` is made of one sequence of each argument.

    The batch is their first dimension.
    """
    if keeps_rows(node) or ops.is_attention(node) or comms.is_all_reduce(node) or comms.is_wait(node):
        return True
    operator, value = operator_named(ops.op_name(node)), _first(node)
    if value is None or value.dim() < 2:
        return False
    if operator.effect in TURNS or operator.effect in (Effect.ROLL, Effect.INTERLEAVE):
        return 0 not in _dims(node, operator, value.dim())
    if operator.effect in (Effect.PRODUCT, Effect.VECTOR_PRODUCT) and ops.op_name(node) != "mm":
        factors = [ops.tensor(arg) for arg in node.args[:2] if isinstance(arg, fx.Node)]
        return all(one is not None and (one.dim() <= 2 or rows_are(one, value)) for one in factors)
    if ops.op_name(node) == "pad":
        widths = argument(node, 1, ("pad",))  # one end alone: the proof follows that along rows only
        return isinstance(widths, tuple | list) and len(widths) // 2 < value.dim() and all(widths)
    return operator.effect in (Effect.TABLE, Effect.PAIRS)


def rows_are(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether both have as many rows."""
    return bool(one.dim() and other.dim() and one.shape[0] == other.shape[0])


def _of_features(index: object, rows: int) -> bool:
    """Return whether an index takes parts of features alone."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if parts[0] is Ellipsis:
        return all(isinstance(part, slice | int) for part in parts[1:])
    plain = all(part is None or isinstance(part, slice | int) for part in parts)
    return plain and len(parts) > rows and all(part == slice(None) for part in parts[: rows + 1])


def _dims(node: fx.Node, operator: Operator, rank: int) -> list[int]:
    """Return the dimensions that an operator works along, or changes the places of; none if that can't be told."""
    if operator.effect in TURNS:
        return [place for place, dim in enumerate(order_of(node, operator, rank)) if dim != place]
    if operator.effect in BESIDE_INDEX:
        dim = dim_beside_index(node, rank)
        return [] if dim is None else [dim]
    return dims_of(node, operator, rank) if operator.at is not None else []
