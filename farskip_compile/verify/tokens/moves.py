# SPDX-License-Identifier: Apache-2.0
"""Operators that move rows: views, parts, joins, and new tensors.

Contract: as in `rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from farskip_compile.verify.tokens.arguments import (
    Args,
    Form,
    Kwargs,
    UnknownError,
    argument,
    labelled,
    one_form,
)
from farskip_compile.verify.tokens.labels import TokenLabels, aligned, at_depth, label_of, mixed, viewed

# Views


def _view(args: Args, kwargs: Kwargs, form: Form) -> Any:
    return viewed(args[0], one_form(form)[0])


def _same(args: Args, kwargs: Kwargs, form: Form) -> Any:
    return args[0]


def _expanded(args: Args, kwargs: Kwargs, form: Form) -> Any:
    value, shape = args[0], one_form(form)[0]
    return TokenLabels(aligned(value, shape, len(shape) - len(value.shape) + value.depth), shape)


def _turned(args: Args, kwargs: Kwargs, form: Form) -> Any:
    """Two dimensions that are named, or the last two, change places."""
    value, shape = args[0], one_form(form)[0]
    count = len(shape)
    one = argument(args, kwargs, 1, "dim0", -2 if len(args) < 2 and count > 1 else 0) % count
    other = argument(args, kwargs, 2, "dim1", -1) % count
    order = list(range(count))
    order[one], order[other] = other, one
    return _in_order(value, order, shape)


def _permuted(args: Args, kwargs: Kwargs, form: Form) -> Any:
    value, shape = args[0], one_form(form)[0]
    given = args[1] if len(args) == 2 and isinstance(args[1], list | tuple) else args[1:] or kwargs["dims"]
    return _in_order(value, [dim % len(shape) for dim in given], shape)


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


def _size(args: Args, kwargs: Kwargs, form: Form) -> Any:
    dim = argument(args, kwargs, 1, "dim")
    return torch.Size(args[0].shape) if dim is None else args[0].shape[dim]


# Parts


def _item(args: Args, kwargs: Kwargs, form: Form) -> Any:
    value, index = args[0], args[1]
    if isinstance(value, tuple | list):
        return value[index]
    parts = list(index) if isinstance(index, tuple | list) else [index]
    if any(isinstance(part, torch.Tensor) for part in parts):
        rest_is_whole = all(part == slice(None) for part in parts[1:] if not isinstance(part, torch.Tensor))
        if not isinstance(parts[0], torch.Tensor) or any(isinstance(part, torch.Tensor) for part in parts[1:]):
            raise UnknownError("an index that is not the first one is a tensor")
        if not rest_is_whole or parts[0].dtype.is_floating_point:
            raise UnknownError("an index of several kinds")
        return TokenLabels(at_depth(value, max(value.depth, 1)).rows[parts[0]], one_form(form)[0])
    return _sliced(value, parts, one_form(form)[0])


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


def _selected(args: Args, kwargs: Kwargs, form: Form) -> Any:
    dim = argument(args, kwargs, 1, "dim") % len(args[0].shape)
    return _sliced(args[0], [slice(None)] * dim + [argument(args, kwargs, 2, "index")], one_form(form)[0])


def _narrowed(args: Args, kwargs: Kwargs, form: Form) -> Any:
    dim, start, length = (
        argument(args, kwargs, place, name) for place, name in ((1, "dim"), (2, "start"), (3, "length"))
    )
    return _sliced(
        args[0], [slice(None)] * (dim % len(args[0].shape)) + [slice(start, start + length)], one_form(form)[0]
    )


def _divided(dim_at: int) -> Callable[[Args, Kwargs, Form], Any]:
    """Consecutive parts, whose sizes are those of the results."""

    def rule(args: Args, kwargs: Kwargs, form: Form) -> Any:
        value: TokenLabels = args[0]
        dim = argument(args, kwargs, dim_at, "dim", 0) % len(value.shape)
        if not isinstance(form, list):
            raise UnknownError("its results are not known")
        found, start = [], 0
        for shape, _ in form:
            gone = len(shape) < len(value.shape)
            length = 1 if gone else shape[dim]
            part = start if gone else slice(start, start + length)
            found.append(_sliced(value, [slice(None)] * dim + [part], shape))
            start += length
        return tuple(found)

    return rule


# Joins


def _joined(args: Args, kwargs: Kwargs, form: Form) -> Any:
    shape = one_form(form)[0]
    dim = argument(args, kwargs, 1, "dim", 0) % len(shape)
    return _along(dim, [labelled(one) for one in args[0]], shape)


def _stacked(args: Args, kwargs: Kwargs, form: Form) -> Any:
    shape = one_form(form)[0]
    dim = argument(args, kwargs, 1, "dim", 0) % len(shape)
    parts = [viewed(labelled(one), (*shape[:dim], 1, *shape[dim + 1 :])) for one in args[0]]
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


def _repeated(args: Args, kwargs: Kwargs, form: Form) -> Any:
    """`repeat_interleave` along the first dimension."""
    value, shape = args[0], one_form(form)[0]
    dim = argument(args, kwargs, 2, "dim")
    count = argument(args, kwargs, 1, "repeats")
    if dim != 0 and not (dim is None and len(value.shape) == 1):
        raise UnknownError("entries are repeated along another dimension than the first")
    rows = at_depth(value, max(value.depth, 1)).rows
    return TokenLabels(torch.repeat_interleave(rows, count, 0), shape)


def _padded(args: Args, kwargs: Kwargs, form: Form) -> Any:
    """Rows of zeros after the last one, or before the first."""
    value, shape = args[0], one_form(form)[0]
    sizes, mode = list(args[1]), argument(args, kwargs, 2, "mode", "constant")
    if isinstance(value, torch.Tensor) or mode != "constant" or argument(args, kwargs, 3, "value") not in (None, 0):
        raise UnknownError("it is padded with something else than zeros")
    if len(sizes) != 2 * len(shape) or any(sizes[:-2]) or min(sizes) < 0:
        raise UnknownError("other dimensions are padded than the first")
    before, after = sizes[-2:]
    rows_before, rows_after = (zeros((count, *shape[1:])) for count in (before, after))
    return _along(0, [rows_before, value, rows_after], shape)


# New ones


def zeros(shape: tuple[int, ...]) -> TokenLabels:
    """Return the labels of zeros: all rows are the same."""
    found: TokenLabels = _made("zeros", (), {}, (shape, torch.float64))
    return found


def _made(kind: str, args: Args, kwargs: Kwargs, form: Form) -> Any:
    """Zeros, ones: each entry the same."""
    shape, dtype = one_form(form)
    if not dtype.is_floating_point:
        return getattr(torch, kind)(shape, dtype=dtype)
    depth = max(len(shape) - 1, min(len(shape), 1))  # all rows are the same
    return TokenLabels(torch.full(shape[:depth], label_of(kind)), shape)


RULES: dict[str, Callable[[Args, Kwargs, Form], Any]] = {
    **dict.fromkeys(["view", "reshape", "_unsafe_view", "view_as", "reshape_as", "flatten", "unflatten"], _view),
    **dict.fromkeys(["unsqueeze", "squeeze"], _view),
    **dict.fromkeys(["contiguous", "clone", "detach", "alias"], _same),
    "dropout": _same,  # an active one is refused before
    **dict.fromkeys(["expand", "expand_as", "broadcast_to"], _expanded),
    **dict.fromkeys(["transpose", "swapaxes", "swapdims", "t"], _turned),
    "permute": _permuted,
    "size": _size,
    "getitem": _item,
    "select": _selected,
    "narrow": _narrowed,
    **dict.fromkeys(["split", "split_with_sizes", "chunk", "tensor_split"], _divided(2)),
    "unbind": _divided(1),
    **dict.fromkeys(["cat", "concat", "concatenate"], _joined),
    "stack": _stacked,
    "pad": _padded,
    "repeat_interleave": _repeated,
    **{f"{kind}_like": partial(_made, kind) for kind in ("zeros", "ones", "empty")},
    **{f"new_{kind}": partial(_made, kind) for kind in ("zeros", "ones", "empty")},
}
