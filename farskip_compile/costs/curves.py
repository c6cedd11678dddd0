# SPDX-License-Identifier: Apache-2.0
"""Measured rates by size, which refine the scalar efficiencies of a profile.

In:    a grid of sizes and the rate measured at each point; then a size.
Out:   the rate at that size: linear between the points in the logarithms of sizes and rates, so that a rate that grows
       with the size is met exactly; beyond the grid the rate at its edge.
Never: extrapolates, or measures anything.
"""

from __future__ import annotations

import itertools
import math
import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field

from farskip_compile.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A positive figure on a grid of sizes.

    Raises:
        ConfigError: sizes that do not ascend, numbers that are not positive, or not one value for each point.
    """

    axes: tuple[tuple[float, ...], ...]
    """Sizes along each dimension, ascending."""
    values: tuple[float, ...]
    """The figure at each point of the grid; the last axis runs fastest."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes", tuple(tuple(map(float, axis)) for axis in self.axes))
        object.__setattr__(self, "values", tuple(map(float, self.values)))
        points = math.prod(map(len, self.axes))
        numbers = [*self.values, *itertools.chain(*self.axes)]
        if not self.axes or points == 0 or points != len(self.values):
            raise ConfigError(
                f"a curve on a grid of {' x '.join(str(len(axis)) for axis in self.axes) or 'no'} points has "
                f"{len(self.values)} values",
                way_out="give one value for each point of the grid",
            )
        if not all(math.isfinite(number) and number > 0 for number in numbers):
            raise ConfigError("a curve has a number that is not positive", way_out="sizes and rates must be above 0")
        if any(first >= second for axis in self.axes for first, second in itertools.pairwise(axis)):
            raise ConfigError("the sizes of a curve do not ascend", way_out="sort them, and name each size once")

    def at(self, *sizes: float) -> float:
        """Return the figure at `sizes`, one for each axis; sizes beyond the grid count as its edge.

        Raises:
            ConfigError: not one size for each axis.
        """
        if len(sizes) != len(self.axes):
            raise ConfigError(f"a curve of {len(self.axes)} sizes was evaluated at {len(sizes)}")
        corners = [(0, 1.0)]
        for axis, size in zip(self.axes, sizes, strict=True):
            low, part = _place(axis, size)
            steps = [(low, 1.0 - part), (low + 1, part)] if part else [(low, 1.0)]
            corners = [(at * len(axis) + step, weight * more) for at, weight in corners for step, more in steps]
        return math.exp(sum(weight * math.log(self.values[at]) for at, weight in corners))

    def around(self, axis: int, size: float) -> tuple[float, float]:
        """Return the sizes of an axis next to `size`, below and above; the same one twice if there is only one."""
        low, part = _place(self.axes[axis], size)
        return self.axes[axis][low], self.axes[axis][low + 1 if part else low]


def _place(axis: tuple[float, ...], size: float) -> tuple[int, float]:
    """Return (index of the point below, the fraction of the way to the next point, by logarithms)."""
    if size <= axis[0]:
        return 0, 0.0
    if size >= axis[-1]:
        return len(axis) - 1, 0.0
    low = bisect_right(axis, size) - 1
    return low, math.log(size / axis[low]) / math.log(axis[low + 1] / axis[low])


ByType = Mapping[str, Curve]
"""A curve for each type of operands, such as `float32`."""
_TYPE = re.compile(r"[a-z][a-z0-9_]{0,31}")


def check_sizes(name: str, curve: Curve, sizes: int) -> None:
    """Raise a `ConfigError` now, not when a compile needs a rate, unless the curve `name` has so many sizes."""
    if len(curve.axes) != sizes:
        raise ConfigError(
            f"the curve {name} has {len(curve.axes)} sizes and not {sizes}", way_out="one axis for each of its sizes"
        )


@dataclass(frozen=True, kw_only=True)
class Curves:
    """The measured curves of one device; None for a curve that is not measured.

    Raises:
        ConfigError: a curve over the wrong number of sizes, or a key that is not a data type.
    """

    matmul: ByType | None = field(default=None, hash=False)
    """FLOP/s of a dense product by (rows, inner, columns); a batch is that many products."""
    attention: ByType | None = field(default=None, hash=False)
    """FLOP/s of fused attention, forward, by (queries, keys, width of a head)."""
    attention_backward: ByType | None = field(default=None, hash=False)
    """FLOP/s of the backward of attention, likewise."""
    grouped_matmul: ByType | None = field(default=None, hash=False)
    """FLOP/s of one product per group by (rows of a group, inner, columns)."""
    memory: Curve | None = None
    """Bytes/s of a fused kernel that reads and writes in order, by its bytes: caches make small ones fast."""
    strided: Curve | None = None
    """Bytes/s of a fused kernel that transposes, likewise."""
    fresh: Curve | None = None
    """Bytes/s at which the pages of a new buffer are handed out at its first use, by its size. CPU only.

    Beyond some size (32 MiB with glibc) an allocator takes the pages from the system each time.
    """

    def __post_init__(self) -> None:
        for kind in ("matmul", "attention", "attention_backward", "grouped_matmul"):
            for dtype, curve in (getattr(self, kind) or {}).items():
                if not _TYPE.fullmatch(dtype):
                    raise ConfigError(f"curves.{kind}: {dtype!r} is not a data type", way_out="float32, bfloat16, ...")
                check_sizes(f"{kind}.{dtype}", curve, 3)
        for kind in ("memory", "strided", "fresh"):
            if (measured := getattr(self, kind)) is not None:
                check_sizes(kind, measured, 1)

    def of(self, kind: str, dtype: str) -> Curve | None:
        """Return the curve of products of `kind` (a field of this class) and `dtype` (`float32`), if measured."""
        found: ByType | None = getattr(self, kind, None)
        return found.get(dtype) if found is not None else None
