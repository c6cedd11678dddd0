# SPDX-License-Identifier: Apache-2.0
"""Which operators keep rows apart, and where the rows are in what they give.

Contract: `carry` answers for one ATen node, from where the rows are in its inputs. What is in no list here is refused:
an operator is named because rows of its result need the same rows of its inputs and no others.

In:    a node; the axis of each of its inputs that holds the rows.
Out:   `CarriedAxis`: the axis of the result, and of the inputs from outside of the region that must be cut with it (a
       saved activation, the weights of the experts if these are the rows); or the reason why not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from farskip_compile._compat import OpOverload, same_dim
from farskip_compile.passes.graph import ops
from farskip_compile.passes.pieces.axis import CutAxis, same, viewed

AxisByNode = Mapping[fx.Node, CutAxis]


class NotSeparableError(Exception):
    """The rows can't be kept apart at `node`."""

    def __init__(self, node: fx.Node, reason: str, launch: fx.Node | None = None) -> None:
        super().__init__(reason)
        self.node = node
        self.reason = reason
        self.launch = launch
        """Of the exchange that stays whole for it, where that is not `node`."""


@dataclass(frozen=True)
class CarriedAxis:
    """What follows for a node."""

    axis: CutAxis
    sides: AxisByNode = field(default_factory=dict)


def carry(node: fx.Node, axes: AxisByNode) -> CarriedAxis:
    """Where the rows are in the result of `node`.

    Raises:
        NotSeparableError: the operator is not known to keep rows apart, or not along this axis.
    """
    name = ops.op_name(node)
    rule = RULES.get(name) or (_pointwise if _is_pointwise(node) else None)
    if rule is None:
        raise NotSeparableError(node, f"{name or node.op} is not known to keep rows apart")
    return rule(node, axes)


def _is_pointwise(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and torch.Tag.pointwise in node.target.tags


def _shape(node: fx.Node) -> Sequence[int | torch.SymInt]:
    value = ops.tensor(node)
    if value is None:
        raise NotSeparableError(node, "its value is not one tensor")
    return value.shape


def _only(node: fx.Node, axes: AxisByNode) -> tuple[fx.Node, CutAxis]:
    """The one input with rows, of an operator that must have no other."""
    held = [arg for arg in node.all_input_nodes if arg in axes]
    if len(held) != 1 or node.args[0] is not held[0]:
        raise NotSeparableError(node, "it takes rows in another place than as its first argument")
    return held[0], axes[held[0]]


def _pointwise(node: fx.Node, axes: AxisByNode) -> CarriedAxis:
    """Entries at one place, after broadcasting, make the entry there."""
    out = _shape(node)
    found: CutAxis | None = None
    for arg in node.all_input_nodes:
        if arg in axes:
            here = axes[arg].moved(axes[arg].dim + len(out) - len(_shape(arg)))
            if found is not None and not same(found, here):
                raise NotSeparableError(node, "its inputs have their rows along different dimensions")
            found = here
    assert found is not None
    sides = {}
    for arg in node.all_input_nodes:
        value = ops.tensor(arg)
        if arg in axes or value is None:
            continue
        dim = found.dim - (len(out) - value.dim())
        if dim < 0 or same_dim(value.shape[dim], 1):
            continue  # the same for all rows
        if not same_dim(value.shape[dim], out[found.dim]):
            raise NotSeparableError(node, f"it broadcasts {arg.name!r} along the rows")
        sides[arg] = found.moved(dim)
    return CarriedAxis(found, sides)


def _view(node: fx.Node, axes: AxisByNode) -> CarriedAxis:
    source, axis = _only(node, axes)
    if ops.tensor(source).dtype != ops.tensor(node).dtype:  # type: ignore[union-attr]
        raise NotSeparableError(node, "it takes the bits for numbers of another type")
    found = viewed(axis, _shape(source), _shape(node))
    if found is None:
        raise NotSeparableError(node, "the view tears rows apart")
    return CarriedAxis(found)


def _permute(node: fx.Node, axes: AxisByNode) -> CarriedAxis:
    _, axis = _only(node, axes)
    rank = len(_shape(node))
    order = [dim % rank for dim in node.args[1]]  # type: ignore[union-attr,operator]
    return CarriedAxis(axis.moved(order.index(axis.dim)))


def _transpose(node: fx.Node, axes: AxisByNode) -> CarriedAxis:
    source, axis = _only(node, axes)
    rank = len(_shape(source))
    a, b = (int(dim) % rank for dim in node.args[1:3] or (0, 1))  # type: ignore[arg-type]
    return CarriedAxis(axis.moved({a: b, b: a}.get(axis.dim, axis.dim)))


def _expand(node: fx.Node, axes: AxisByNode) -> CarriedAxis:
    source, axis = _only(node, axes)
    return CarriedAxis(axis.moved(axis.dim + len(_shape(node)) - len(_shape(source))))


def _along(position: int, default: int | None = None) -> Callable[[fx.Node, AxisByNode], CarriedAxis]:
    """Entries along some dimensions meet, or are picked: not along that of the rows."""

    def rule(node: fx.Node, axes: AxisByNode) -> CarriedAxis:
        source, axis = _only(node, axes)
        before, after = len(_shape(source)), len(_shape(node))
        given = node.args[position] if len(node.args) > position else default
        dims = [given] if isinstance(given, int) else given
        if not isinstance(dims, list | tuple) or not dims or not all(isinstance(dim, int) for dim in dims):
            raise NotSeparableError(node, "it works along all dimensions")
        gone = {int(dim) % before for dim in dims}
        if axis.dim in gone:
            raise NotSeparableError(node, "it works along the rows")
        shift = sum(dim < axis.dim for dim in gone) if after < before else 0
        return CarriedAxis(axis.moved(axis.dim - shift))

    return rule


def _padded(node: fx.Node, axes: AxisByNode) -> CarriedAxis:
    source, axis = _only(node, axes)
    amounts = list(node.args[1])  # type: ignore[arg-type]
    place = 2 * (len(_shape(source)) - 1 - axis.dim)
    if any(amounts[place : place + 2]):
        raise NotSeparableError(node, "it pads the rows")
    return CarriedAxis(axis)


def _joined(node: fx.Node, axes: AxisByNode) -> CarriedAxis:
    """All parts hold the rows, or must be cut; they are joined along another dimension."""
    parts = node.args[0]
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    found = [axes[part] for part in node.all_input_nodes if part in axes]
    if not isinstance(parts, list | tuple) or not isinstance(dim, int) or not all(same(found[0], one) for one in found):
        raise NotSeparableError(node, "its parts have their rows along different dimensions")
    if dim % len(_shape(node)) == found[0].dim:
        raise NotSeparableError(node, "it joins along the rows")
    return CarriedAxis(found[0], {part: found[0] for part in node.all_input_nodes if part not in axes})


def _product(left: int, right: int) -> Callable[[fx.Node, AxisByNode], CarriedAxis]:
    """A product of matrices, or of stacks of them. `left`, `right`: positions of the two.

    The rows may be rows of the left one, columns of the right one, or the matrices of a stack.
    """

    def rule(node: fx.Node, axes: AxisByNode) -> CarriedAxis:
        a, b = node.args[left], node.args[right]
        assert isinstance(a, fx.Node)
        assert isinstance(b, fx.Node)
        stack = len(_shape(node)) - 2
        if any(arg in axes for arg in node.all_input_nodes if arg not in (a, b)) or (a in axes and a is b):
            raise NotSeparableError(node, "more than its factors hold rows")
        found = {arg: axes[arg] for arg in (a, b) if arg in axes}
        if all(axis.dim < stack for axis in found.values()):
            first, *rest = found.values()
            if any(not same(first, one) for one in rest):
                raise NotSeparableError(node, "its factors have their rows along different dimensions")
            return CarriedAxis(first, {arg: first for arg in (a, b) if arg not in axes} | _bias(node, (a, b), first))
        if len(found) == 1 and a in axes and axes[a].dim == stack:
            return CarriedAxis(axes[a], _bias(node, (a, b), axes[a]))
        if len(found) == 1 and b in axes and axes[b].dim == stack + 1:
            return CarriedAxis(axes[b], _bias(node, (a, b), axes[b]))
        raise NotSeparableError(node, "it sums over the rows")

    return rule


def _bias(node: fx.Node, factors: Sequence[fx.Node], axis: CutAxis) -> dict[fx.Node, CutAxis]:
    """What is added to a product, if it has a value for each row."""
    rank = len(_shape(node))
    added = {}
    for arg in node.all_input_nodes:
        value = ops.tensor(arg)
        if arg in factors or value is None:
            continue
        dim = axis.dim - (rank - value.dim())
        if dim >= 0 and not same_dim(value.shape[dim], 1):
            added[arg] = axis.moved(dim)
    return added


RULES: dict[str, Callable[[fx.Node, AxisByNode], CarriedAxis]] = {
    **dict.fromkeys(["view", "reshape", "_unsafe_view", "squeeze", "unsqueeze"], _view),
    **dict.fromkeys(["clone", "alias", "detach", "convert_element_type", "_to_copy", "fma"], _pointwise),
    "_c10d_functional::wait_tensor": _pointwise,
    "permute": _permute,
    "transpose": _transpose,
    "expand": _expand,
    **dict.fromkeys(["sum", "mean", "amax", "amin", "prod", "logsumexp"], _along(1)),
    **dict.fromkeys(["_softmax", "_log_softmax", "cumsum", "select", "slice"], _along(1, 0)),
    "constant_pad_nd": _padded,
    "cat": _joined,
    "mm": _product(0, 1),
    "bmm": _product(0, 1),
    "addmm": _product(1, 2),
    "baddbmm": _product(1, 2),
}
SIZED = frozenset(["view", "reshape", "_unsafe_view", "expand"])
"""Operators that name the shape of their result as their second argument."""
