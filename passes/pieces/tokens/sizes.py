# SPDX-License-Identifier: Apache-2.0
"""Numbers in calls that count gathered rows, as they are for a piece: sizes, room for experts, places in it.

In:    a call on the rows of all tokens; how many these are, and how many a piece has.
Out:   its arguments for the rows of a piece.
Never: decides what is right. A number may be a multiple of the rows by chance: then the copy has the wrong size, which
       shapes tell, or rows in other places, which the proof does (`farskip_compile.verify.tokens`).

Algorithm: a size counts rows if it is their number, a multiple, or one more than that (the place for rows of other
ranks' experts). A view has one size that makes its entries as many as those of the piece. Numbers in the arithmetic of
places are scaled if a place is a slot of an expert: then the number of an expert is multiplied by its room, that of all
rows.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import fx

from farskip_compile.passes.graph import ops
from farskip_compile.passes.pieces.rules import NotSeparableError
from farskip_compile.passes.pieces.tokens.order import MADE

ARITHMETIC = frozenset(["mul", "lt", "le", "gt", "ge", "where", "clamp"])
GIVEN = frozenset(["zeros", "ones", "empty", "full", "arange"])
"""New tensors whose sizes are their first arguments."""
SIZED = frozenset(["expand", "broadcast_to"])


class RowCounts:
    """Of gathered rows: `whole` of all tokens; `inside` is where they are read."""

    def __init__(self, whole: int, inside: Collection[fx.Node]) -> None:
        self.whole = whole
        self.have_slots = any(ops.op_name(node) == "mul" and self._places(node) for node in inside)

    def _places(self, node: fx.Node) -> bool:
        value = ops.tensor(node)
        return value is not None and not value.is_floating_point() and self.whole in _plain(node.args)

    def args(self, node: fx.Node, args: Any, kwargs: Any, rows: int) -> tuple[Any, Any, Any, Any]:
        """Operation, target, arguments and keywords of the copy of `node` for a piece of so many rows.

        Args:
            node: of the whole.
            args: with what the piece has in place of the rows of all tokens.
            kwargs: likewise.
            rows: of the piece.
        """
        name, value = ops.op_name(node), ops.tensor(node)
        call = node.op, node.target
        if name in ops.VIEWS and value is not None:
            return self._view(node, args, kwargs, rows)
        if value is not None and (name in SIZED or (name in MADE and not name.endswith("_like"))):
            first = 0 if name in GIVEN else 1
            return *call, self._sizes(args, value.shape, rows, first), kwargs
        if name == "getitem":
            return *call, (args[0], *self._parts(args[1:], rows)), kwargs
        if self.have_slots and name in ARITHMETIC and value is not None and not value.is_floating_point():
            return *call, tuple(self.scaled(arg, rows) for arg in args), kwargs
        return (
            *call,
            args,
            {key: self.scaled(arg, rows) if key == "output_size" else arg for key, arg in kwargs.items()},
        )

    def scaled(self, number: Any, rows: int) -> Any:
        """A number that counts rows, of the piece; any other value as it is."""
        if type(number) is not int or number < self.whole or number % self.whole > 1:
            return number
        return number // self.whole * rows + number % self.whole

    def _view(self, node: fx.Node, args: Any, kwargs: Any, rows: int) -> tuple[Any, Any, Any, Any]:
        """As a reshape, if the piece has other entries."""
        was, now = ops.tensor(node.all_input_nodes[0]), ops.tensor(args[0])
        shape = [int(size) for size in ops.tensor(node).shape]  # type: ignore[union-attr]
        if was is None or now is None or now.shape == was.shape:
            return node.op, node.target, args, kwargs
        count, dims = now.numel(), _overlapping(was.shape, now.shape, shape)
        # the number of rows itself first, then a multiple, then a part of it
        dims.sort(key=lambda dim: (shape[dim] != self.whole, shape[dim] % self.whole != 0, -shape[dim]))
        for dim in dims:
            rest = math.prod(shape[:dim] + shape[dim + 1 :])
            if rest and count % rest == 0:
                return "call_function", torch.reshape, (args[0], [*shape[:dim], count // rest, *shape[dim + 1 :]]), {}
        raise NotSeparableError(node, f"the shape {shape} does not scale with the number of tokens")

    def _sizes(self, args: Any, shape: Sequence[Any], rows: int, first: int) -> Any:
        """With the first size that counts rows."""
        listed = len(args) > first and isinstance(args[first], list | tuple)
        sizes = list(args[first] if listed else args[first:])
        for dim in range(min(len(shape), len(sizes))):
            if sizes[dim] == -1:
                break  # they are as many as the argument has
            if (size := self.scaled(sizes[dim], rows)) != sizes[dim]:
                sizes[dim] = size
                break
        return (*args[:first], sizes, *args[first + 1 :]) if listed else (*args[:first], *sizes)

    def _parts(self, index: Any, rows: int) -> Any:
        """Ends of a slice of rows."""

        def of_rows(part: Any) -> Any:
            if isinstance(part, slice):
                return slice(self.scaled(part.start, rows), self.scaled(part.stop, rows), part.step)
            return self.scaled(part, rows)

        first, *rest = index
        if isinstance(first, tuple) and first:
            return [(of_rows(first[0]), *first[1:]), *rest]
        return [of_rows(first) if isinstance(first, slice) else first, *rest]


def _overlapping(was: Sequence[Any], now: Sequence[Any], shape: Sequence[int]) -> list[int]:
    """Of a view, the dimensions in which entries lie of the first one of `was` whose size is another one `now`."""
    changed = next(dim for dim, (one, other) in enumerate(zip(was, now, strict=True)) if one != other)
    first, last = math.prod(was[:changed]), math.prod(was[: changed + 1])
    return [
        dim
        for dim, size in enumerate(shape)
        if size > 1 and math.prod(shape[:dim]) < last and math.prod(shape[: dim + 1]) > first
    ]


def _plain(args: Sequence[Any]) -> list[int]:
    return [arg for arg in args if type(arg) is int]
