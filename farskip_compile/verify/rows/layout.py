# SPDX-License-Identifier: Apache-2.0
"""Where the rows of the stream are in a tensor: for each dimension the axes that it runs over.

Contract: pure functions on layouts and shapes; sizes may be symbolic, and no guard is installed on them. What can't be
said exactly is None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from farskip_compile._compat import same_dim

RowCount = int | torch.SymInt
PICKED = -1
"""The index of rows that were picked: it says of a dimension only that they are along it."""


class RowAxis(NamedTuple):
    """A part of a dimension. Sizes that are symbols are compared without a guard."""

    token: int | None
    """The dimension of the stream whose index it is, or `PICKED`; None: something else."""
    size: RowCount

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RowAxis) and self.token == other.token and same_dim(self.size, other.size)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self.token)


RowLayout = tuple[tuple[RowAxis, ...], ...]
"""For each dimension the axes that it runs over, the slowest first; axes of size 1 are left out."""


def of_stream(shape: Sequence[RowCount], indices: int | None = None) -> RowLayout:
    """The layout of a residual value: every dimension but the last is an index of rows, or only the first `indices`."""
    count = len(shape) - 1 if indices is None else indices
    return tuple(_dim(place if place < count else None, size) for place, size in enumerate(shape))


def _dim(token: int | None, size: RowCount) -> tuple[RowAxis, ...]:
    return () if same_dim(size, 1) else (RowAxis(token, size),)


def filled(layout: RowLayout, shape: Sequence[RowCount]) -> bool:
    """Whether the dimensions with an index of rows hold all of these rows, not a part of them."""
    pairs = [(dim, size) for dim, size in zip(layout, shape, strict=True) if tokens(dim) and not is_picked(dim)]
    return all(same_dim(math.prod(axis.size for axis in dim), size) for dim, size in pairs)


def tokens(dim: Sequence[RowAxis]) -> tuple[int, ...]:
    """The token axes of a dimension."""
    return tuple([axis.token for axis in dim if axis.token is not None])


def picked(size: RowCount) -> tuple[RowAxis, ...]:
    """A dimension with an index of picked rows."""
    return _dim(PICKED, size)


def is_picked(dim: Sequence[RowAxis]) -> bool:
    """Whether picked rows are along a dimension."""
    return PICKED in tokens(dim)


def index_of(layout: Sequence[Sequence[RowAxis]]) -> bool:
    """Whether an index of rows runs over any of these dimensions."""
    return any(map(tokens, layout))


def loosened(layout: Sequence[tuple[RowAxis, ...]]) -> RowLayout:
    """The layout with an index of picked rows wherever there is one of rows."""
    return tuple(tuple(axis if axis.token is None else axis._replace(token=PICKED) for axis in dim) for dim in layout)


def places(layout: RowLayout) -> dict[int, int]:
    """For each token axis the dimension that it is in."""
    return {token: place for place, dim in enumerate(layout) for token in tokens(dim)}


def reshape(layout: RowLayout, shape: Sequence[RowCount]) -> RowLayout | None:
    """The layout after a view as `shape`; None if an index of rows is split, or merged with a part of another axis."""
    axes = [axis for dim in layout for axis in dim]
    found: list[tuple[RowAxis, ...]] = []
    wanted = list(shape)
    place = 0
    while wanted:
        if same_dim(wanted[0], 1):
            found.append(())
            wanted.pop(0)
            continue
        match = _match(axes[place:], wanted)
        if match is None:
            return None
        taken, given = match
        group = axes[place : place + taken]
        if given == 1:
            found.append(tuple(group))
        elif any(axis.token is not None for axis in group):
            if not all(axis.token in (None, PICKED) for axis in group):
                return None
            found += _split_picked(group, wanted[:given])
        else:
            found += [_dim(None, size) for size in wanted[:given]]
        place += taken
        del wanted[:given]
    return tuple(found) if place == len(axes) else None


def _split_picked(group: Sequence[RowAxis], wanted: Sequence[RowCount]) -> RowLayout:
    """The dimensions of `wanted`; the last ones stay features as long as their sizes divide the features of `group`."""
    dims = [picked(size) for size in wanted]
    last = group[-1]
    left = last.size if last.token is None else 1
    for place in reversed(range(len(wanted))):
        size = wanted[place]
        if not (isinstance(left, int) and isinstance(size, int) and left % size == 0):
            break
        dims[place] = _dim(None, size)
        left //= size
    return tuple(dims)


def _match(axes: Sequence[RowAxis], wanted: Sequence[RowCount]) -> tuple[int, int] | None:
    """The fewest axes and dimensions, from the front of both, that have as many elements."""
    left: list[RowCount] = []
    for axis in axes:
        left.append(axis.size * left[-1] if left else axis.size)
    right: list[RowCount] = []
    for size in wanted:
        right.append(size * right[-1] if right else size)
    pairs = [(a, b) for a in range(1, len(left) + 1) for b in range(1, len(right) + 1)]
    pairs.sort(key=lambda pair: (sum(pair), pair))
    return next((pair for pair in pairs if same_dim(left[pair[0] - 1], right[pair[1] - 1])), None)


def permute(layout: RowLayout, order: Sequence[int]) -> RowLayout:
    """The layout with its dimensions in another order."""
    return tuple(layout[place] for place in order)


def along(layout: RowLayout, dims: Sequence[int]) -> bool:
    """Whether an index of rows runs over one of these dimensions."""
    return any(tokens(layout[dim]) for dim in dims)


def features(shape: Sequence[RowCount]) -> RowLayout:
    """The layout of a value that holds no index of rows."""
    return tuple(_dim(None, size) for size in shape)


def broadcast(layouts: Sequence[RowLayout], shape: Sequence[RowCount]) -> RowLayout | None:
    """The layout of values that are broadcast to `shape`; None if rows of one meet other rows of another one."""
    first = layouts[0] if layouts else ()
    if all(one is first for one in layouts) and len(first) == len(shape) and all(map(tokens, first[:-1])):
        return first if tokens(first[-1]) else (*first[:-1], _dim(None, shape[-1]))
    found: list[tuple[RowAxis, ...]] = [_dim(None, size) for size in shape]
    if any(len(layout) > len(shape) for layout in layouts):
        return None
    for layout in layouts:
        shift = len(shape) - len(layout)
        for place, dim in enumerate(layout):
            if not tokens(dim):
                continue
            here = found[shift + place]
            if tokens(here) and here != dim:
                if not (is_picked(here) or is_picked(dim)):
                    return None
                dim = picked(shape[shift + place])
            found[shift + place] = dim
    seen = [token for dim in found for token in tokens(dim) if token != PICKED]
    return tuple(found) if len(seen) == len(set(seen)) else None
