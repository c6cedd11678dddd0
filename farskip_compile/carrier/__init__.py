"""The residual stream between two layers that are compiled one by one: its parts, and how they make the whole.

Contract: a `Carrier` stands where a tensor of the model's would. The next layer takes its parts, some of them still in
flight. Whoever else reads it, a hook, a norm, a layer that is not compiled, `copy.deepcopy` or `pickle`, gets the whole
stream, a plain tensor, without knowing. A carrier is complete in itself, so that no order of calls loses or doubles a
part. Asking for its shape, type or device waits for nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from farskip_compile._compat.trees import is_alias, register_tree
from farskip_compile.errors import PartialModelError
from farskip_compile.passes.boundary.markers import arrive
from farskip_compile.passes.boundary.tail import tail_of

KNOWN = frozenset(["shape", "device", "layout", "ndim", "requires_grad", "is_cuda", "is_cpu", "is_meta"])
"""Attributes that the whole stream has in common with its base."""
ASKED = frozenset(["size", "dim", "numel", "ndimension", "is_floating_point", "get_device", "__len__"])
"""Methods of which this holds."""


class Carrier:
    """A residual stream in parts: the base, and further terms that are settled, in flight, or needed for these."""

    def __init__(self, key: str, parts: tuple[Any, ...]) -> None:
        self.key = key
        """Of the tail that makes the stream of the parts."""
        self.parts = parts
        self.made: dict[bool, torch.Tensor] = {}
        """The whole stream, once somebody has asked for it, with and without gradients."""

    def whole(self) -> torch.Tensor:
        """The stream, for whoever is not a layer that takes it in parts."""
        if torch.compiler.is_compiling():
            return arrive(self.key, *self.parts)
        gradients = torch.is_grad_enabled()
        if gradients not in self.made:
            self.made[gradients] = tail_of(self.key)(*self.parts)
        return self.made[gradients]

    @property
    def dtype(self) -> torch.dtype:
        """Of the whole stream."""
        return tail_of(self.key).dtype

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)  # what Python and PyTorch look up on their own is given below, or absent
        known = name in KNOWN or name in ASKED
        return getattr(self.parts[0] if known else self.whole(), name)

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        args, kwargs = tree_map_only(cls, cls.whole, (args, dict(kwargs or {})), is_leaf=_is_carrier)
        return function(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        return copy.deepcopy(self.whole(), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.whole().__reduce_ex__(protocol)

    def __len__(self) -> int:
        return len(self.parts[0])

    def __repr__(self) -> str:
        return f"Carrier({len(self.parts)} parts, {tuple(self.shape)}, {self.dtype}, tail {self.key})"


def _is_carrier(value: Any) -> bool:
    return type(value) is Carrier


def _through(name: str) -> Callable[..., Any]:
    """An operator of the whole stream."""

    def method(self: Carrier, *args: Any) -> Any:
        others = tree_map_only(Carrier, Carrier.whole, args, is_leaf=_is_carrier)
        return getattr(self.whole(), name)(*others)

    return method


for _name in (
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv", "mod", "pow", "rpow", "matmul"),
    *("rmatmul", "iadd", "isub", "imul", "itruediv", "and", "or", "xor", "neg", "pos", "abs", "invert"),
    *("lt", "le", "gt", "ge", "eq", "ne", "getitem", "setitem", "iter", "bool", "float", "int", "array", "contains"),
):
    setattr(Carrier, f"__{_name}__", _through(f"__{_name}__"))
Carrier.__hash__ = object.__hash__  # type: ignore[method-assign]


def _flatten(carrier: Carrier) -> tuple[list[Any], Carrier]:
    return [carrier.parts[0]], carrier


def _unflatten(leaves: Any, carrier: Carrier) -> Any:
    """What somebody made of the base was meant for the stream: the same memory stays a carrier, anything else that can
    be told is done to the whole.

    FSDP2 and others go through what a layer takes and returns, to cast it, to move it, or to hang hooks on it. Parts in
    flight must not be touched, and a cast of the base alone would be another rounding.
    """
    (base,) = leaves
    old = carrier.parts[0]
    if base is old:
        return carrier
    if not isinstance(base, torch.Tensor):
        return base  # a structure of something else, such as hooks' names or flags
    same = base.dtype == old.dtype and base.device == old.device and base.shape == old.shape
    if same and is_alias(base, old):
        if base.requires_grad == old.requires_grad:
            return Carrier(carrier.key, (base, *carrier.parts[1:]))
        if not base.requires_grad:
            return carrier.whole().detach()
    if not same and base.shape == old.shape:
        return carrier.whole().to(device=base.device, dtype=base.dtype)
    raise PartialModelError(
        "a function was mapped over what one layer hands to the next, and changed a part of the residual stream",
        way_out="call it on the tensor: `carrier.whole()` is the residual stream",
    )


register_tree(Carrier, _flatten, _unflatten)
