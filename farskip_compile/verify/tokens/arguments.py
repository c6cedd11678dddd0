# SPDX-License-Identifier: Apache-2.0
"""The arguments of an operator, with labels in place of tensors.

Contract: pure functions. A tensor among the arguments is one whose numbers are known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from farskip_compile.verify.tokens.labels import TokenLabels, at_depth, of_numbers

Args = Sequence[Any]
Kwargs = dict[str, Any]
One = tuple[tuple[int, ...], torch.dtype]
"""Shape and type of a tensor."""
Form = One | list[One] | None
"""Of a result; a list for several; None if it is not a tensor."""


class UnknownError(Exception):
    """An operator is not known to depend on its arguments alone."""


def flat(value: Any) -> Iterator[Any]:
    """All that lists, tuples, slices and dictionaries hold."""
    if isinstance(value, list | tuple):
        for one in value:
            yield from flat(one)
    elif isinstance(value, dict):
        for key in sorted(value):
            yield from flat(value[key])
    else:
        yield value


def values(args: Args, kwargs: Kwargs) -> list[Any]:
    """What has rows."""
    return [value for value in flat((args, kwargs)) if isinstance(value, TokenLabels | torch.Tensor)]


def constants(args: Args, kwargs: Kwargs) -> list[str]:
    """What has none."""
    return [repr(value) for value in flat((args, kwargs)) if not isinstance(value, TokenLabels | torch.Tensor)]


def argument(args: Args, kwargs: Kwargs, place: int, name: str, default: Any = None) -> Any:
    """By place or by name."""
    return args[place] if len(args) > place else kwargs.get(name, default)


def labelled(value: Any, depth: int | None = None) -> TokenLabels:
    """A value as labels; by default as deep as is known, of numbers all but the last dimension."""
    if isinstance(value, torch.Tensor):
        return of_numbers(value, max(value.dim() - 1, min(value.dim(), 1)) if depth is None else depth)
    return value if depth is None else at_depth(value, depth)


def one_form(form: Form) -> One:
    """Of a single tensor.

    Raises:
        UnknownError: it is none.
    """
    if not isinstance(form, tuple):
        raise UnknownError("its result is not one tensor")
    return form
