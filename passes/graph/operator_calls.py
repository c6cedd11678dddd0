# SPDX-License-Identifier: Apache-2.0
"""How a call names the dimensions that its operator works along.

Contract: pure functions of the arguments of a call, which is a node of a graph or a `Call` with values in their place,
and of the line of its operator (`operators`). PyTorch accepts NumPy's names, too: `x` or `a` for `input`, `axis` for
`dim`. Dimensions are returned as numbers from 0 on. What can't be told is None, or all dimensions: then nothing is
claimed that is not so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from farskip_compile.passes.graph.operators import Effect, Operator

INPUT = ("input", "self", "x", "a", "x1", "tensors")
DIM = ("dim", "axis", "dims")


class HasArguments(Protocol):
    """A call: a node, or values."""

    @property
    def args(self) -> Sequence[Any]:
        """The arguments by position."""

    @property
    def kwargs(self) -> Mapping[str, Any]:
        """The arguments by name."""


class Call(NamedTuple):
    """The arguments of a call."""

    args: Sequence[Any]
    kwargs: Mapping[str, Any]


def argument(call: HasArguments, position: int, names: Sequence[str]) -> Any:
    """Return the argument at a position, or of one of these names; None if there is none."""
    if position < len(call.args):
        return call.args[position]
    return next((call.kwargs[name] for name in names if name in call.kwargs), None)


def is_number(value: object) -> bool:
    """Return whether a value is a plain integer; a bool is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def numbers(args: Iterable[object]) -> list[int]:
    """Return the integers among arguments, which may be given one by one or in a list."""
    flat = [one for arg in args for one in (arg if isinstance(arg, tuple | list) else (arg,))]
    return [one for one in flat if isinstance(one, int) and not isinstance(one, bool)]


def dim_of(call: HasArguments, operator: Operator, rank: int) -> int | None:
    """Return the one dimension, of `rank`, that a call works along; None if it can't be told."""
    assert operator.at is not None
    dim = argument(call, operator.at, DIM)
    if dim is None and operator.default is not None:
        (dim,) = operator.default
    return int(dim) % rank if is_number(dim) and rank > 0 else None


def dims_of(call: HasArguments, operator: Operator, rank: int) -> list[int]:
    """Return the dimensions, of `rank`, that a call works along; all if they can't be told."""
    assert operator.at is not None
    given = argument(call, operator.at, DIM)
    if operator.several:
        named = numbers(call.args[operator.at :] or (given,))
        return [dim % rank for dim in named] if named and rank else list(range(rank))
    dims = operator.default if given is None else given if isinstance(given, tuple | list) else [given]
    if not dims or rank == 0 or not all(map(is_number, dims)):
        return list(range(rank))
    return [dim % rank for dim in dims]


def dim_beside_index(call: HasArguments, rank: int) -> int | None:
    """Return the one dimension, which stands before or behind an index: `gather`, `index_add`, `take_along_dim`."""
    found = numbers([*call.args[1:3], *(call.kwargs[key] for key in DIM if key in call.kwargs)])
    return found[0] % rank if found and rank else None


def order_of(call: HasArguments, operator: Operator, rank: int) -> list[int]:
    """Return for each dimension of the result of a `TRANSPOSE`, `PERMUTE` or `MOVE` the dimension that it was."""
    if operator.effect is Effect.PERMUTE:
        return dims_of(call, operator, rank)
    order = list(range(rank))
    if operator.effect is Effect.MOVE:
        given = [*call.args[1:], *(call.kwargs[key] for key in ("source", "destination") if key in call.kwargs)]
        sources, places = ([dim % rank for dim in numbers([arg])] for arg in given)
        order = [dim for dim in order if dim not in sources]
        for place, source in sorted(zip(places, sources, strict=True)):
            order.insert(place, source)
    elif rank > 1:
        named = numbers([*call.args[1:], *call.kwargs.values()]) or [0, 1]
        one, other = (dim % rank for dim in named[:2])
        order[one], order[other] = order[other], order[one]
    return order
