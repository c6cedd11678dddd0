# SPDX-License-Identifier: Apache-2.0
"""A call of an operator, with labels in place of tensors.

Contract: pure functions. A tensor among the arguments is one whose numbers are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from farskip_compile.passes.graph.operators import Operator
from farskip_compile.verify.tokens.labels import TokenLabels, at_depth, of_numbers

Args = Sequence[Any]
Kwargs = dict[str, Any]
One = tuple[tuple[int, ...], torch.dtype]
"""Shape and type of a tensor."""
Form = One | list[One] | None
"""The form of a result; a list for several tensors; None for anything else."""


class UnknownError(Exception):
    """An operator is not known to depend on its arguments alone."""


class LabelledCall(NamedTuple):
    """A call of an operator on labels."""

    name: str
    """The canonical name of the operator, without the `_` of a form in place."""
    operator: Operator
    args: Args
    kwargs: Kwargs
    form: Form
    """The shape and the type of the result."""

    @property
    def one_form(self) -> One:
        """The form of a single tensor.

        Raises:
            UnknownError: the result is none.
        """
        if not isinstance(self.form, tuple):
            raise UnknownError("its result is not one tensor")
        return self.form

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the one result."""
        return self.one_form[0]

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """Return the argument at a place, or of a name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)


LabelRule = Callable[[LabelledCall], Any]
"""A function that returns the result of a call, on labels; None if it has none for this call."""


def flat(value: Any) -> Iterator[Any]:
    """Yield all that lists, tuples and dictionaries hold."""
    if isinstance(value, list | tuple):
        for one in value:
            yield from flat(one)
    elif isinstance(value, dict):
        for key in sorted(value):
            yield from flat(value[key])
    else:
        yield value


def values(args: Args, kwargs: Kwargs) -> list[Any]:
    """Return the arguments that have rows."""
    return [value for value in flat((args, kwargs)) if isinstance(value, TokenLabels | torch.Tensor)]


def constants(args: Args, kwargs: Kwargs) -> list[str]:
    """Return the other arguments, as texts."""
    return [repr(value) for value in flat((args, kwargs)) if not isinstance(value, TokenLabels | torch.Tensor)]


def labelled(value: Any, depth: int | None = None) -> TokenLabels:
    """Return a value as labels; by default as deep as is known, of numbers all but the last dimension."""
    if isinstance(value, torch.Tensor):
        return of_numbers(value, max(value.dim() - 1, min(value.dim(), 1)) if depth is None else depth)
    return value if depth is None else at_depth(value, depth)
