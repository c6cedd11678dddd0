# SPDX-License-Identifier: Apache-2.0
"""A part: which rows of an old value a node of a graph in pieces is.

Contract: plain data, and what follows from it. It says nothing of how the rows came to be: `pieces` shows that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from farskip_compile.errors import VerificationError
from farskip_compile.passes.graph import ops, user_calls
from farskip_compile.verify.rows import layout as layouts
from farskip_compile.verify.rows.layout import RowAxis, RowLayout

VIEWS = frozenset(["view", "reshape", "_unsafe_view"])
ROWS = 0
"""The token of the rows that are cut."""


@dataclass(frozen=True)
class RowRange:
    """Rows of an old value."""

    of: str
    """Its name."""
    low: int = 0
    high: int = 0
    size: int = 0
    """How many rows the whole has; 0: nothing was cut yet."""
    layout: RowLayout = ()
    """Where they are in the whole, in some shape: a view changes the shape, not the order of the entries."""

    @property
    def is_whole(self) -> bool:
        """Whether these are all rows."""
        return self.low == 0 and self.high == self.size

    @property
    def rows(self) -> tuple[int, int, int]:
        """Which rows, of how many."""
        return self.low, self.high, self.size

    def layout_of(self, shape: Any) -> RowLayout | None:
        """Where the rows are in the whole, viewed in this shape; None if the view tears them apart."""
        return layouts.reshape(self.layout, shape)

    def is_taken_by(self, old: fx.Node, new: fx.Node) -> bool:
        """Whether `old` takes just these rows of a split of the old value, or of a view of it, shaped as `new`."""
        taken = _taken(old)
        if taken is None or not ops.same_shape(tensor(old), tensor(new)):
            return False
        source, shape, dim, rows = taken
        layout = [*layouts.features(shape)]
        layout[dim] = (RowAxis(ROWS, rows[2]),)
        own = self.layout_of(shape)
        return source.name == self.of and self.rows == rows and own is not None and _merged(own) == layout


def _merged(layout: RowLayout) -> list[tuple[RowAxis, ...]]:
    """The layout with neighbouring axes that hold no rows as one."""
    found = []
    for dim in layout:
        axes: list[RowAxis] = []
        for axis in dim:
            if axes and axes[-1].token is None and axis.token is None:
                axes[-1] = RowAxis(None, axes[-1].size * axis.size)
            else:
                axes.append(axis)
        found.append(tuple(axes))
    return found


def _taken(node: fx.Node) -> tuple[fx.Node, Sequence[Any], int, tuple[int, int, int]] | None:
    """What `node` takes a part of a split of, looking through views; the shape that was split, along which dimension;
    first row, end, and number of rows there."""
    split: Any = node.args[0] if ops.op_name(node) == "getitem" else None
    if split is None or ops.op_name(split) != "split_with_sizes" or split.kwargs or ops.tensor(node) is None:
        return None
    source, sizes, dim = [*split.args, 0][:3]
    shape, place = tensor(source).shape, node.args[1]
    if not isinstance(shape[dim], int) or not isinstance(place, int) or not 0 <= place < len(sizes):
        return None
    while ops.op_name(source) in VIEWS:
        source = source.args[0]
    low = sum(sizes[:place])
    return source, shape, dim, (low, low + sizes[place], shape[dim])


def tensor(node: Any) -> Any:
    """The fake value of `node`.

    Raises:
        VerificationError: it has not just one.
    """
    value = ops.tensor(node)
    if value is None:
        raise error(node, "its value is not one tensor")
    return value


def error(node: fx.Node, reason: str) -> VerificationError:
    """That `node` is not shown to be what it should."""
    return VerificationError(
        f"exchanges in pieces: {node.name!r} is not what it should be: {reason}",
        way_out="nothing was compiled; please report this: it is a defect of farskip-compile. pieces=1 goes without it",
        where=user_calls.where(node),
    )
