# SPDX-License-Identifier: Apache-2.0
"""The residual stream between two layers that are compiled one by one: its parts, and how they make the whole.

Contract: a `Carrier` stands where a tensor of the model's would. The next layer takes its parts, some of them still in
flight. Whoever else reads it, a hook, a norm, a layer that is not compiled, `copy.deepcopy` or `pickle`, gets the whole
stream, a plain tensor, without knowing. A carrier is complete in itself, so that no order of calls loses or doubles a
part. Asking for its shape, type or device waits for nothing. Writing into it is an error.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from farskip_compile._compat.trees import is_alias, map_over, register_tree
from farskip_compile.errors import PartialModelError
from farskip_compile.passes.boundary.markers import arrive
from farskip_compile.passes.boundary.tail import tail_of

KNOWN = frozenset(["shape", "device", "layout", "ndim", "requires_grad", "is_cuda", "is_cpu", "is_meta"])
"""Attributes that the whole stream has in common with its base."""
ASKED = frozenset(["size", "dim", "numel", "ndimension", "is_floating_point", "get_device", "__len__"])
"""Methods of which this holds."""
WRITES = tuple(
    f"__{name}__" for name in ("setitem", "iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "imatmul")
)
"""Operators that write into a tensor."""


class Rest:
    """What a carrier holds besides its base. No dataclass: no walk over structures is to look into it."""

    def __init__(self, key: str, base: torch.Tensor, others: tuple[Any, ...]) -> None:
        self.key = key
        """Of the tail that makes the stream of the parts."""
        self.base = base
        """As it left the graph: what somebody puts in its place is compared with it."""
        self.others = others
        """Further parts: terms that are settled, in flight, or needed for these."""


@dataclass(eq=False, repr=False)
class Carrier:
    """A residual stream in parts. A dataclass, since FSDP2 looks for tensors in these.

    FSDP2 and others go through what a layer takes and returns, to cast it, to move it, or to hang hooks on it. They see
    the base alone. What they put in its place was meant for the stream: the same memory stays a carrier, a cast, a move
    or a detachment is done to the whole, which is then a plain tensor. Parts in flight must not be touched, and a cast
    of the base alone would be another rounding.

    Raises:
        PartialModelError: the base was replaced by something else.
    """

    base: torch.Tensor
    rest: Rest

    def __new__(cls, base: torch.Tensor, rest: Rest) -> Any:
        """A carrier, or the whole stream with done to it what was done to its base."""
        old = rest.base
        same = base is old or (base.dtype == old.dtype and base.device == old.device and base.shape == old.shape)
        if same and (base is old or (is_alias(base, old) and base.requires_grad == old.requires_grad)):
            return object.__new__(cls)
        stream = object.__new__(cls)
        stream.base, stream.rest = old, rest
        if same and is_alias(base, old) and not base.requires_grad:
            return stream.whole().detach()
        if not same and base.shape == old.shape:
            return stream.whole().to(device=base.device, dtype=base.dtype)
        raise PartialModelError(
            "a function was mapped over what one layer hands to the next, and changed a part of the residual stream",
            way_out="call it on the tensor: `carrier.whole()` is the residual stream",
        )

    def whole(self) -> torch.Tensor:
        """The stream, for whoever is not a layer that takes it in parts."""
        if torch.compiler.is_compiling():
            return arrive(self.rest.key, self.base, *self.rest.others)
        return tail_of(self.rest.key)(self.base, *self.rest.others)  # not kept: checkpoints count what is saved

    @property
    def dtype(self) -> torch.dtype:
        """Of the whole stream."""
        return tail_of(self.rest.key).dtype

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)  # what Python and PyTorch look up on their own is given below, or absent
        if name.endswith("_") and not name.startswith("_"):
            _refuse_write(name)
        known = name in KNOWN or name in ASKED
        return getattr(self.base if known else self.whole(), name)

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        written = name in WRITES or (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace")
        targets = (*(args[:1] if written else ()), kwargs.get("out"))
        if any(isinstance(target, cls) for target in targets):
            _refuse_write(name)
        args, kwargs = map_over(cls, cls.whole, (args, kwargs))
        return function(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        return copy.deepcopy(self.whole(), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.whole().__reduce_ex__(protocol)

    def __len__(self) -> int:
        return len(self.base)

    def __repr__(self) -> str:
        parts = 1 + len(self.rest.others)
        return f"Carrier({parts} parts, {tuple(self.base.shape)}, {self.dtype}, tail {self.rest.key})"


def _refuse_write(name: str) -> NoReturn:
    """What is written into the whole stream, a new tensor, would be lost: the next layer reads the parts."""
    raise PartialModelError(
        f"{name!r} would write into the residual stream between two layers that are compiled one by one",
        way_out="return a new tensor from the hook, or from whatever stands between the layers: x = x + y, not x += y",
    )


def _written(name: str) -> Callable[..., Any]:
    """An operator that writes into the stream."""

    def method(self: Carrier, *args: Any) -> Any:
        _refuse_write(name)

    return method


def _through(name: str) -> Callable[..., Any]:
    """An operator of the whole stream."""

    def method(self: Carrier, *args: Any) -> Any:
        others = map_over(Carrier, Carrier.whole, args)
        return getattr(self.whole(), name)(*others)

    return method


for _name in (
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv", "mod", "pow", "rpow", "matmul"),
    *("rmatmul", "and", "or", "xor", "neg", "pos", "abs", "invert"),
    *("lt", "le", "gt", "ge", "eq", "ne", "getitem", "iter", "bool", "float", "int", "array", "contains"),
):
    setattr(Carrier, f"__{_name}__", _through(f"__{_name}__"))
for _name in WRITES:
    setattr(Carrier, _name, _written(_name))
Carrier.__hash__ = object.__hash__  # type: ignore[method-assign]


def _flatten(carrier: Carrier) -> tuple[list[Any], Rest]:
    return [carrier.base], carrier.rest


def _unflatten(leaves: Any, rest: Rest) -> Any:
    (base,) = leaves
    return Carrier(base, rest) if isinstance(base, torch.Tensor) else base  # a structure of flags or names, say


register_tree(Carrier, _flatten, _unflatten)
