# SPDX-License-Identifier: Apache-2.0
"""A tensor that records the terms of its sum: eager mode's view of the residual stream.

Contract: `ResidualTensor` holds the value that the model computed and its expression. Adds and steps that keep a sum a
sum (views, casts, scalings by a number or a vector of channels) extend the expression; every other operator *reads* the
sum, and gets the value that `reading` decides on. `Expression.without(labels)` is the value with some terms set to
zero: 0 + y is y, and a value without any of them is used unchanged, so that additions keep the model's order.
Neither graphs nor the compiler are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

from farskip_compile._compat.tensors import without_subclass_functions

TermLabels = frozenset[str]


@dataclass(eq=False)
class Expression:
    """A value, and how it was computed."""

    value: torch.Tensor
    labels: TermLabels
    """Labels of its terms."""
    parts: tuple[Expression, ...] = ()
    compute: Callable[..., torch.Tensor] | None = None
    """Computes the value from the values of the parts; None for a term."""
    _known: dict[TermLabels, torch.Tensor | None] = field(default_factory=dict)

    def without(self, labels: TermLabels) -> torch.Tensor | None:
        """Return the value with the terms of these labels set to zero; None if nothing is left."""
        labels = labels & self.labels
        if not labels:
            return self.value
        if labels not in self._known:
            self._known[labels] = self._without(labels)
        return self._known[labels]

    def _without(self, labels: TermLabels) -> torch.Tensor | None:
        if self.compute is None:
            return None
        values = [value for part in self.parts if (value := part.without(labels)) is not None]
        if len(self.parts) == 1 or len(values) == 2:
            return self.compute(*values) if values else None
        return values[0] if values else None


def _methods(*names: str) -> frozenset[Any]:
    return frozenset(getattr(torch.Tensor, name) for name in names)


ADDS = frozenset([torch.add]) | _methods("add", "add_", "__add__", "__radd__", "__iadd__")
MULTIPLIES = frozenset([torch.mul]) | _methods("mul", "mul_", "__mul__", "__rmul__", "__imul__")
KEEPS_SUMS = (
    frozenset([torch.reshape, torch.flatten, torch.unsqueeze, torch.squeeze, torch.clone, torch.transpose, torch.div])
    | _methods("view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "transpose", "permute", "expand")
    | _methods("clone", "contiguous", "to", "type", "float", "double", "half", "bfloat16", "type_as", "view_as")
    | _methods("__getitem__", "div", "__truediv__", "sum", "mean")
)
"""Linear in their first argument."""
METADATA = frozenset(["__get__", "size", "dim", "numel", "stride", "is_contiguous", "is_floating_point", "get_device"])


class ResidualTensor(torch.Tensor):
    """See the module. Only its expression counts, also where the value of the object itself is older."""

    expression: Expression

    @staticmethod
    def term(value: torch.Tensor, label: str) -> ResidualTensor:
        """Return `value` as a new term of this label."""
        return _wrap(Expression(plain(value), frozenset([label])))

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Extend the expression, or read it."""
        kwargs = dict(kwargs or {})
        if func.__name__ in METADATA:
            return _call(func, [plain(arg) for arg in args], kwargs)
        if func is torch.nn.functional.dropout and not _draws(*args[1:], **kwargs):
            return args[0]
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        sums = [arg for arg in tensors if isinstance(arg, ResidualTensor)]
        if any(isinstance(arg, ForkedTensor) for arg in tensors):  # something else of the same read, for many readers
            return ForkedTensor.__torch_function__(func, types, args, kwargs)
        if func in ADDS and len(tensors) == len(args) == 2 and tensors[0].shape == tensors[1].shape and not kwargs:
            return _add(func, tensors[0], tensors[1])
        if func in ADDS and len(sums) == 1 and len(tensors) == len(args) == 2 and not kwargs:
            (shift,) = (arg for arg in args if arg is not sums[0])
            if shift.dim() <= 1:  # a vector of channels
                return _map(lambda x: _call(torch.add, (x, shift), {}), sums[0].expression)
        if func in MULTIPLIES and len(sums) == 1 and not kwargs:
            (factor,) = (arg for arg in args if arg is not sums[0])
            if isinstance(factor, torch.Tensor) and factor.dim() > 1:
                return _through(torch.mul, types, args, kwargs)  # the scale of a norm is computed from the sum itself
            return _map(lambda x: _call(torch.mul, (x, factor), {}), sums[0].expression)
        if func in KEEPS_SUMS and len(sums) == 1 and sums[0] is args[0]:
            return _map(lambda x: _call(func, (x, *args[1:]), kwargs), sums[0].expression)
        return _through(func, types, args, kwargs)


class ForkedTensor(torch.Tensor):
    """The values that several readers compute from one read of a sum, each without other terms."""

    alternatives: Mapping[str, torch.Tensor]

    @staticmethod
    def of(alternatives: Mapping[str, Any]) -> ForkedTensor:
        """Return an object with the values by reader; the object itself has the first value."""
        tensor = next(iter(alternatives.values())).as_subclass(ForkedTensor)
        tensor.alternatives = alternatives
        return tensor

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Compute it for each reader."""
        if func.__name__ in METADATA:
            return _call(func, args, dict(kwargs or {}))
        args = [_read(arg) for arg in args]
        forks = [arg for arg in (*args, *(kwargs or {}).values()) if isinstance(arg, ForkedTensor)]
        results = {}
        for reader in forks[0].alternatives:
            mine = [arg.alternatives[reader] if isinstance(arg, ForkedTensor) else arg for arg in args]
            named = {
                key: arg.alternatives[reader] if isinstance(arg, ForkedTensor) else arg
                for key, arg in (kwargs or {}).items()
            }
            results[reader] = func(*mine, **named)
        return ForkedTensor.of(results)


def plain(value: Any) -> Any:
    """`value` as an ordinary tensor, all terms in it."""
    return value.expression.value if isinstance(value, ResidualTensor) else value


def _wrap(expression: Expression) -> ResidualTensor:
    tensor = expression.value.as_subclass(ResidualTensor)
    tensor.expression = expression
    return tensor


def _call(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    with without_subclass_functions():
        return func(*args, **kwargs)


def _draws(p: float = 0.5, training: bool = True, inplace: bool = False) -> bool:
    """Return whether a dropout with these arguments does anything."""
    return training and p > 0.0


def _add(func: Callable[..., Any], left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    known = [arg.expression if isinstance(arg, ResidualTensor) else None for arg in (left, right)]
    beside = frozenset[str]().union(*(one.labels for one in known if one is not None))
    found = [one or _reading.get()[0](arg, beside) for one, arg in zip(known, (left, right), strict=True)]
    parts = [one for one in found if one is not None]
    if len(parts) < 2:
        return _call(torch.add, (plain(left), plain(right)), {})

    def compute(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return _call(torch.add, (one, other), {})

    value = compute(parts[0].value, parts[1].value)
    expression = Expression(value, parts[0].labels | parts[1].labels, tuple(parts), compute)
    if func in (torch.Tensor.add_, torch.Tensor.__iadd__):  # the caller keeps using the object that it added to
        left.__class__ = ResidualTensor
        left.expression = expression  # type: ignore[attr-defined]
        return left
    return _wrap(expression)


def _map(compute: Callable[[torch.Tensor], torch.Tensor], expression: Expression) -> ResidualTensor:
    return _wrap(Expression(compute(expression.value), expression.labels, (expression,), compute))


def _read(value: Any) -> Any:
    if isinstance(value, ResidualTensor):
        return _reading.get()[1](value.expression)
    if isinstance(value, list | tuple):
        return type(value)(map(_read, value))
    return value


def _through(func: Callable[..., Any], types: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return a step that reads the sums among its arguments."""
    values, named = [_read(value) for value in args], {key: _read(value) for key, value in kwargs.items()}
    if any(isinstance(value, ForkedTensor) for value in (*values, *named.values())):
        return ForkedTensor.__torch_function__(func, types, values, named)
    return _call(func, values, named)


Label = Callable[[torch.Tensor, TermLabels], Expression | None]
Read = Callable[[Expression], torch.Tensor]

_reading: ContextVar[tuple[Label, Read]] = ContextVar(
    "reading", default=(lambda value, beside: Expression(value, frozenset()), lambda expression: expression.value)
)
"""Names plain summands, and decides what a reader gets."""


@contextmanager
def reading(label: Label, read: Read) -> Iterator[None]:
    """Name terms and choose readers' values within the block.

    A tensor that is added to a sum gets its label from `label`, which is given the labels of the sum. `read` gives the
    value that a reader gets.
    """
    token = _reading.set((label, read))
    try:
        yield
    finally:
        _reading.reset(token)
