# SPDX-License-Identifier: Apache-2.0
"""The put of a sum, `a[i] = a[i] + x`, as one call that reads its base once.

In:    an `index_put` of a graph in single-assignment form; the value that it puts may be a sum with the rows that it
       replaces.
Out:   `put_sum`, and back. Between the two nobody has to follow the base through the picked rows.
Never: joins a put whose rows are picked at other places, or of another value.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from farskip_compile.passes.graph import ops
from farskip_compile.passes.graph.walk import fresh_like

ROWS = "farskip_rows"
"""In the meta of a `put_sum`: the fake value of the sum that it puts."""
FORMS = ("picked + added", "added + picked", "picked - added")
"""The sums that `put_sum` puts."""
Indices = Sequence[Any]
"""For each leading dimension a tensor of indices, or None for all of it."""


def put_sum(base: torch.Tensor, indices: Indices, added: Any, form: str) -> torch.Tensor:
    """Return `base` with the sum of `base[indices]` and `added` put at `indices`: of equal places, any one counts."""
    picked = base[_key(indices)]
    total = picked - added if form == FORMS[2] else picked + added if form == FORMS[0] else added + picked
    result: torch.Tensor = put_function(indices)(base, indices, total)
    return result


def _key(indices: Indices) -> tuple[Any, ...]:
    return tuple(slice(None) if index is None else index for index in indices)


def put_function(indices: Indices) -> Any:
    """Return the function of PyTorch that takes these indices: the one of Python takes no None."""
    return torch.ops.aten.index_put.default if any(index is None for index in indices) else torch.index_put


def put_of_sum(put: fx.Node) -> tuple[Any, str] | None:
    """Return what `put` adds to the rows that it replaces, and in which form; None if it puts something else."""
    if len(put.args) != 3 or put.kwargs:
        return None
    base, indices, total = put.args
    if not isinstance(total, fx.Node) or not ops.is_sum(total):
        return None
    left, right = total.args
    subtracts = ops.op_name(total) == "sub"
    if isinstance(left, fx.Node) and _picks(left, base, indices):
        return right, FORMS[2 if subtracts else 0]
    if isinstance(right, fx.Node) and _picks(right, base, indices) and not subtracts:
        return left, FORMS[1]
    return None


def join_put_of_sum(put: fx.Node, added: Any, form: str) -> None:
    """Make `put(a, i, a[i] + x)` one call, in place."""
    base, indices, total = put.args
    assert isinstance(total, fx.Node)
    put.op, put.target, put.args = "call_function", put_sum, (base, indices, added, form)
    put.meta[ROWS] = ops.tensor(total)
    _erase_unused(total)


def _picks(node: fx.Node, base: object, indices: Any) -> bool:
    """Return whether `node` is `base[indices]`, or a copy of it."""
    while ops.op_name(node) in ops.COPIES and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    if ops.op_name(node) not in ("getitem", "index") or len(node.args) != 2 or node.args[0] is not base:
        return False
    return as_indices(node.args[1]) == tuple(indices)


def as_indices(key: object) -> tuple[Any, ...] | None:
    """Return the indices that `index_put` takes for the key of `a[key]`; None if it takes no such key."""
    parts = list(key) if isinstance(key, tuple | list) else [key]
    while parts and (parts[-1] is Ellipsis or parts[-1] == slice(None)):
        parts.pop()
    found = [None if part is None or part == slice(None) else part for part in parts]
    if not any(isinstance(part, fx.Node) for part in found) or not all(
        part is None or (isinstance(part, fx.Node) and ops.tensor(part) is not None) for part in found
    ):
        return None
    return tuple(found)


def _erase_unused(node: fx.Node) -> None:
    """Erase what only the put read: the sum, and the picked rows."""
    while not node.users and ops.op_name(node) in ("add", "sub", "getitem", "index", *ops.COPIES):
        inputs = [arg for arg in node.all_input_nodes if ops.op_name(arg) in ("getitem", "index", *ops.COPIES)]
        node.graph.erase_node(node)
        if not inputs:
            return
        node = next((arg for arg in inputs if not arg.users), inputs[0])


def part_put_of_sum(graph: fx.Graph, put: fx.Node) -> None:
    """Write `put_sum` as the calls that it stands for."""
    base, indices, added, form = put.args
    with graph.inserting_before(put):
        picked = graph.call_function(operator.getitem, (base, _key(indices)))  # type: ignore[arg-type]
        operands = (added, picked) if form == FORMS[1] else (picked, added)
        total = graph.call_function(operator.sub if form == FORMS[2] else operator.add, operands)
    rows = put.meta.pop(ROWS, None)
    rows = ops.tensor(added) if rows is None and isinstance(added, fx.Node) else rows
    for node in (picked, total):
        node.meta = {key: value for key, value in put.meta.items() if key not in ("example_value", "farskip_storage")}
        node.meta |= {} if rows is None else {"example_value": fresh_like(rows)}
    put.target, put.args = put_function(indices), (base, indices, total)  # type: ignore[arg-type]
