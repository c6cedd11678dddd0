# SPDX-License-Identifier: Apache-2.0
"""Operators that move rows: views, parts, joins, and new tensors.

Contract: as in `rules`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from farskip_compile.passes.graph.operator_calls import dim_of, order_of
from farskip_compile.passes.graph.operators import Effect
from farskip_compile.verify.tokens.arguments import LabelledCall, LabelRule, UnknownError, labelled
from farskip_compile.verify.tokens.labels import TokenLabels, aligned, at_depth, label_of, mixed, viewed

FILLS = ("zeros", "ones", "empty")

# Views


def _view(call: LabelledCall) -> Any:
    if any(isinstance(one, torch.dtype) for one in (*call.args, *call.kwargs.values())):
        raise UnknownError("its bits are read as numbers of another type")
    return viewed(call.args[0], call.shape)


def _same(call: LabelledCall) -> Any:
    return call.args[0]


def _expanded(call: LabelledCall) -> Any:
    value, shape = call.args[0], call.shape
    return TokenLabels(aligned(value, shape, len(shape) - len(value.shape) + value.depth), shape)


def _turned(call: LabelledCall) -> Any:
    """Dimensions in another order."""
    return _in_order(call.args[0], order_of(call, call.operator, len(call.shape)), call.shape)


def _in_order(value: TokenLabels, order: Sequence[int], shape: tuple[int, ...]) -> TokenLabels:
    """Leading dimensions that stay leading are permuted as rows; the rest becomes part of each label."""
    depth = value.depth
    while sorted(order[:depth]) != list(range(depth)):
        depth -= 1
    labels = at_depth(value, depth)
    turned = labels.rows.permute(list(order[:depth])) if depth else labels.rows
    moved = list(order[depth:]) != list(range(depth, len(shape)))
    return TokenLabels(
        mixed(turned, label_of("turned", order[depth:], labels.shape[depth:])) if moved else turned, shape
    )


def _size(call: LabelledCall) -> Any:
    if call.name != "size":
        return None
    dim = call.argument(1, "dim")
    return torch.Size(call.args[0].shape) if dim is None else call.args[0].shape[dim]


# Parts


def _item(call: LabelledCall) -> Any:
    value, index = call.args[0], call.args[1]
    if isinstance(value, tuple | list):
        return value[index]
    if isinstance(index, list):
        raise UnknownError("its index is a list")
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(part, torch.Tensor) for part in parts):
        rest_is_whole = all(part == slice(None) for part in parts[1:] if not isinstance(part, torch.Tensor))
        if not isinstance(parts[0], torch.Tensor) or any(isinstance(part, torch.Tensor) for part in parts[1:]):
            raise UnknownError("an index that is not the first one is a tensor")
        if not rest_is_whole or parts[0].dtype.is_floating_point:
            raise UnknownError("an index of several kinds")
        return TokenLabels(at_depth(value, max(value.depth, 1)).rows[parts[0]], call.shape)
    return _sliced(value, parts, call.shape)


def _sliced(value: TokenLabels, parts: list[Any], shape: tuple[int, ...]) -> TokenLabels:
    """Slices, numbers, new dimensions: of rows they are done, of features they become part of the label."""
    if Ellipsis in parts:
        place = parts.index(Ellipsis)
        given = sum(part is not None for part in parts) - 1
        parts[place : place + 1] = [slice(None)] * (len(value.shape) - given)
    depth = max(value.depth, 1) if parts and parts[0] != slice(None) and parts[0] is not None else value.depth
    rows, place = at_depth(value, depth).rows, 0
    own: list[Any] = []
    left: list[Any] = []
    for part in parts:
        if place < depth:
            own.append(part)
        elif part is not None or left:
            left.append(part)
        else:
            own.append(None)
        place += part is not None
    rows = rows[tuple(own)] if own else rows
    if any(part != slice(None) for part in left):
        rows = mixed(rows, label_of("part", left))
    return TokenLabels(rows, shape)


def _selected(call: LabelledCall) -> Any:
    value = call.args[0]
    return _sliced(value, [slice(None)] * _dim(call, len(value.shape)) + [call.argument(2, "index")], call.shape)


def _narrowed(call: LabelledCall) -> Any:
    value, start, length = call.args[0], call.argument(2, "start"), call.argument(3, "length")
    return _sliced(value, [slice(None)] * _dim(call, len(value.shape)) + [slice(start, start + length)], call.shape)


def _dim(call: LabelledCall, rank: int) -> int:
    """Return the one dimension, of `rank`, that a call works along.

    Raises:
        UnknownError: it can't be told.
    """
    dim = dim_of(call, call.operator, rank)
    if dim is None:
        raise UnknownError("its dimension is not known")
    return dim


def _divided(call: LabelledCall) -> Any:
    """Consecutive parts, whose sizes are those of the results."""
    value: TokenLabels = call.args[0]
    dim = _dim(call, len(value.shape))
    if not isinstance(call.form, list):
        raise UnknownError("its results are not known")
    found, start = [], 0
    for shape, _ in call.form:
        gone = len(shape) < len(value.shape)
        length = 1 if gone else shape[dim]
        part = start if gone else slice(start, start + length)
        found.append(_sliced(value, [slice(None)] * dim + [part], shape))
        start += length
    return tuple(found)


# Joins


def _joined(call: LabelledCall) -> Any:
    shape = call.shape
    return _along(_dim(call, len(shape)), [labelled(one) for one in call.args[0]], shape)


def _stacked(call: LabelledCall) -> Any:
    shape = call.shape
    dim = _dim(call, len(shape))
    parts = [viewed(labelled(one), (*shape[:dim], 1, *shape[dim + 1 :])) for one in call.args[0]]
    return _along(dim, parts, shape)


def _along(dim: int, parts: Sequence[TokenLabels], shape: tuple[int, ...]) -> TokenLabels:
    depth = max(one.depth for one in parts)
    if dim < max(depth, 1):
        depth = max(depth, dim + 1)
        return TokenLabels(torch.cat([at_depth(one, depth).rows for one in parts], dim), shape)
    rows = torch.tensor(label_of("joined", dim - depth))
    for one in parts:
        rows = mixed(mixed(rows, label_of(one.shape[depth:])), at_depth(one, depth).rows)
    return TokenLabels(rows, shape)


def _repeated(call: LabelledCall) -> Any:
    """`repeat_interleave` along the first dimension."""
    value = call.args[0]
    dim = call.argument(2, "dim")
    count = call.argument(1, "repeats")
    if dim != 0 and not (dim is None and len(value.shape) == 1):
        raise UnknownError("entries are repeated along another dimension than the first")
    rows = at_depth(value, max(value.depth, 1)).rows
    return TokenLabels(torch.repeat_interleave(rows, count, 0), call.shape)


def _padded(call: LabelledCall) -> Any:
    """Rows of zeros after the last one, or before the first."""
    if call.name != "pad":
        return None
    value, shape = call.args[0], call.shape
    sizes, mode = list(call.args[1]), call.argument(2, "mode", "constant")
    if isinstance(value, torch.Tensor) or mode != "constant" or call.argument(3, "value") not in (None, 0):
        raise UnknownError("it is padded with something else than zeros")
    if len(sizes) != 2 * len(shape) or any(sizes[:-2]) or min(sizes) < 0:
        raise UnknownError("other dimensions are padded than the first")
    before, after = sizes[-2:]
    rows_before, rows_after = (zeros((count, *shape[1:])) for count in (before, after))
    return _along(0, [rows_before, value, rows_after], shape)


# New ones


def zeros(shape: tuple[int, ...]) -> TokenLabels:
    """Return the labels of zeros: all rows are the same."""
    return _filled("zeros", shape)


def _like(call: LabelledCall) -> Any:
    """Zeros, ones: each entry the same."""
    kind = call.name.removeprefix("new_").removesuffix("_like")
    shape, dtype = call.one_form
    if kind not in FILLS:
        return None
    return _filled(kind, shape) if dtype.is_floating_point else getattr(torch, kind)(shape, dtype=dtype)


def _filled(kind: str, shape: tuple[int, ...]) -> TokenLabels:
    depth = max(len(shape) - 1, min(len(shape), 1))  # all rows are the same
    return TokenLabels(torch.full(shape[:depth], label_of(kind)), shape)


RULES: dict[Effect, LabelRule] = {
    **dict.fromkeys([Effect.VIEW, Effect.UNIT], _view),
    **dict.fromkeys([Effect.COPY, Effect.SAME], _same),
    Effect.EXPAND: _expanded,
    **dict.fromkeys([Effect.TRANSPOSE, Effect.PERMUTE, Effect.MOVE], _turned),
    Effect.SIZE: _size,
    Effect.ITEM: _item,
    Effect.SELECT: _selected,
    Effect.NARROW: _narrowed,
    **dict.fromkeys([Effect.SPLIT, Effect.UNBIND], _divided),
    Effect.JOIN: _joined,
    Effect.STACK: _stacked,
    Effect.PAD: _padded,
    Effect.INTERLEAVE: _repeated,
    Effect.LIKE: _like,
}
