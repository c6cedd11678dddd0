# SPDX-License-Identifier: Apache-2.0
"""The content of memory while a graph runs, as numbers; tensors are views of it.

Contract: knows no operator and computes no tensor. `Numbers` gives equal structures equal numbers, and no others.
`read` and `write` follow one law, and nothing else is ever taken for equal: a part that was written holds what was
written to it last, seen through itself or through any part of it.

Two views hold the same elements if the same steps lead to both, or if their fake tensors say so: same offset, sizes and
strides, or one contiguous range.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch

from farskip_compile._compat import same_dim


class Numbers:
    """A number for each structure: equal ones for equal structures, never for two that differ."""

    def __init__(self) -> None:
        self._known: dict[Hashable, int] = {}

    def of(self, *parts: Hashable) -> int:
        """Return the number of the structure made of `parts`."""
        return self._known.setdefault(parts, len(self._known))


class Lens:
    """Elements of a memory in some order: those of `whole` after one step, such as a slice or a transposition."""

    __slots__ = ("fake", "path", "spot", "step", "whole")

    def __init__(self, whole: Lens | None, step: int, path: int, fake: torch.Tensor | None = None) -> None:
        self.whole, self.step = whole, step
        self.path = path
        """Number of the steps from the whole memory."""
        self.fake = fake
        self.spot: tuple[Hashable, ...] | None = None
        """The places of the elements, once they were asked for."""


class WrittenRegion:
    """The content of the elements of one lens. The last write to a part of them is remembered as a region."""

    __slots__ = ("before", "inside", "number", "part", "way")

    def __init__(self, number: int) -> None:
        self.number = self.before = number
        self.part: Lens | None = None
        self.inside: WrittenRegion | None = None
        self.way = 0


@dataclass(slots=True, eq=False)
class TensorMemory:
    """The memory that one tensor and its views share."""

    root: Lens
    holds: WrittenRegion
    outside: Hashable = None
    """Name of the graph input or attribute that it belongs to; None: the graph allocates it."""
    is_new: bool = False
    """True if a node that the code under test made allocated the memory: its layout is not known."""
    last_write: object = None
    """The node that wrote to it last."""


@dataclass(slots=True, eq=False)
class View:
    """A tensor: elements of a memory, in a shape."""

    memory: TensorMemory
    lens: Lens
    shape: int
    """Number of its shape."""
    fake: torch.Tensor
    """The fake tensor of the graph: type, device and layout."""
    differentiable: bool = False
    """True if gradients go through the view."""
    seen: object = None
    """The write that whoever reads this view depends on by an edge of the graph."""
    note: tuple[Any, ...] = ()
    """The way in which the view was made, where a later operator is judged by it."""


def allocate(number: int, outside: Hashable = None, *, is_new: bool = False) -> TensorMemory:
    """Return a memory that holds `number`."""
    return TensorMemory(Lens(None, 0, 0), WrittenRegion(number), outside, is_new)


def narrow(view: Lens, step: int, numbers: Numbers, fake: torch.Tensor | None) -> Lens:
    """Return what `step` makes of `view`; `fake`: the tensor that says where it lies, if there is one."""
    return Lens(view, step, numbers.of("path", view.path, step), fake)


def read(view: View, numbers: Numbers) -> int:
    """Return the number of what `view` holds now, whatever its shape."""
    region, base, lens = view.memory.holds, view.memory.root, view.lens
    while region.part is not None and (inner := _within(lens, region.part, base)) is not None:
        assert region.inside is not None
        region, base = region.inside, inner
    return _along(base, lens, region.number, numbers)


def write(view: View, number: int, numbers: Numbers) -> None:
    """Let `view` hold `number` from now on."""
    regions, base, lens = [view.memory.holds], view.memory.root, view.lens
    while lens is not base:
        region = regions[-1]
        inner = _within(lens, region.part, base) if region.part is not None else None
        if inner is None:
            region.before, region.part, region.inside = region.number, lens, WrittenRegion(number)
            region.way = _along(base, lens, numbers.of("way"), numbers)
            break
        assert region.inside is not None
        regions.append(region.inside)
        base = inner
    else:
        regions[-1].number, regions[-1].part = number, None
        regions.pop()
    for region in reversed(regions):
        assert region.inside is not None
        region.number = numbers.of("written", region.before, region.way, region.inside.number)


def _along(base: Lens, lens: Lens, number: int, numbers: Numbers) -> int:
    """Return what the steps from `base` to `lens` make of `number`."""
    steps = []
    while lens is not base:
        steps.append(lens.step)
        assert lens.whole is not None
        lens = lens.whole
    for step in reversed(steps):
        number = numbers.of("part", step, number)
    return number


def _within(lens: Lens, part: Lens, base: Lens) -> Lens | None:
    """Return `lens`, or what it was made of, if that is `part`; None if nothing behind `base` is."""
    while lens is not base:
        if lens.path == part.path or (_spot(lens) == _spot(part) and _spot(part)):
            return lens
        assert lens.whole is not None
        lens = lens.whole
    return None


def same_elements(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two fake tensors that share memory hold the same elements in the same order."""
    return one.dtype == other.dtype and spot_of(one) == spot_of(other)


def _spot(lens: Lens) -> tuple[Hashable, ...]:
    if lens.spot is None:
        lens.spot = spot_of(lens.fake) if lens.fake is not None else ()
    return lens.spot


def spot_of(value: torch.Tensor) -> tuple[Hashable, ...]:
    """Return where the elements of a fake tensor lie; empty if it has no layout."""
    if value.layout is not torch.strided:
        return ()
    sizes, expected, flat = tuple(value.shape), 1, True
    strides = value.stride()
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        flat = flat and (same_dim(size, 1) or same_dim(stride, expected))
        expected = expected * size
    start = (str(value.storage_offset()), value.dtype)
    if flat:
        return (*start, str(expected))
    return (*start, tuple(map(str, sizes)), tuple(map(str, strides)))
