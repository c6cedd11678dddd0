# SPDX-License-Identifier: Apache-2.0
"""Where the rows that are cut lie in a tensor: one axis of it, which may be a part of a dimension.

Contract: pure functions on sizes, which may be symbolic; no guard is installed on them. What can't be said is None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from farskip_compile._compat import same_dim

AxisSize = int | torch.SymInt


@dataclass(frozen=True)
class CutAxis:
    """An axis: dimension `dim` runs over `outer` blocks, each of `size` rows, each of `inner` entries."""

    dim: int
    outer: AxisSize
    size: int
    inner: AxisSize

    def moved(self, dim: int) -> CutAxis:
        """The same rows in another dimension."""
        return CutAxis(dim, self.outer, self.size, self.inner)

    def scaled(self, shape: Sequence[AxisSize], rows: int) -> list[AxisSize]:
        """`shape` with this many rows along the axis."""
        return [*shape[: self.dim], self.outer * rows * self.inner, *shape[self.dim + 1 :]]

    def alone(self, shape: Sequence[AxisSize], rows: int) -> tuple[list[AxisSize], int]:
        """`shape` with this many rows, in a dimension of their own; and which that is."""
        parts = [self.outer, rows, self.inner]
        kept = [part for place, part in enumerate(parts) if place == 1 or not same_dim(part, 1)]
        dim = self.dim + (0 if same_dim(self.outer, 1) else 1)
        return [*shape[: self.dim], *kept, *shape[self.dim + 1 :]], dim

    def is_alone(self) -> bool:
        """Whether the dimension runs over the rows and nothing else."""
        return same_dim(self.outer, 1) and same_dim(self.inner, 1)


def same(a: CutAxis, b: CutAxis) -> bool:
    """Equal axes."""
    return a.dim == b.dim and a.size == b.size and same_dim(a.outer, b.outer) and same_dim(a.inner, b.inner)


def viewed(axis: CutAxis, old: Sequence[AxisSize], new: Sequence[AxisSize]) -> CutAxis | None:
    """The axis after a view of the shape `old` as `new`; None if the rows are torn apart."""
    before = math.prod(old[: axis.dim]) * axis.outer
    after = axis.inner * math.prod(old[axis.dim + 1 :])
    for dim in range(len(new)):
        outer, inner = quotient(before, math.prod(new[:dim])), quotient(after, math.prod(new[dim + 1 :]))
        if outer is not None and inner is not None and same_dim(outer * axis.size * inner, new[dim]):
            return CutAxis(dim, outer, axis.size, inner)
    return None


def quotient(a: AxisSize, b: AxisSize) -> AxisSize | None:
    """`a / b`, if that is known to be a whole number."""
    if isinstance(b, int) and b == 0:
        return None
    found = a // b
    return found if same_dim(found * b, a) else None


def axes_of(dims: Sequence[AxisSize], shapes: Sequence[Sequence[AxisSize]], blocks: int) -> list[CutAxis]:
    """The axes of a tensor of the shape `dims` that views of it as `shapes` show, the slowest first; those of its first
    dimension lie inside of each of `blocks` equal parts of it. The last dimension is one of features."""
    found = _inside(dims[0], shapes, blocks)
    found += [CutAxis(dim, 1, size, 1) for dim, size in enumerate(dims[:-1]) if dim > 0 and isinstance(size, int)]
    return [axis for axis in found if axis.size > 1]


def _inside(first: AxisSize, shapes: Sequence[Sequence[AxisSize]], blocks: int) -> list[CutAxis]:
    """Axes of the first dimension, between places at which some view of it begins another dimension."""
    borders: list[AxisSize] = [blocks]
    products = [math.prod(shape[:count]) for shape in shapes for count in range(1, len(shape))]
    for border in sorted(one for one in products if isinstance(one, int) and one > blocks):
        if border != borders[-1] and quotient(border, borders[-1]) is not None and quotient(first, border) is not None:
            borders.append(border)
    if not same_dim(borders[-1], first) and quotient(first, borders[-1]) is not None:
        borders.append(first)
    sizes = [(outer, quotient(end, outer), quotient(first, end)) for outer, end in pairwise(borders)]
    return [
        CutAxis(0, outer, size, inner) for outer, size, inner in sizes if isinstance(size, int) and inner is not None
    ]


def intervals(size: int, pieces: int) -> list[tuple[int, int]]:
    """`size` rows in nearly equal parts, the larger ones first."""
    least, more = divmod(size, pieces)
    ends = [least * number + min(number, more) for number in range(pieces + 1)]
    return list(pairwise(ends))
