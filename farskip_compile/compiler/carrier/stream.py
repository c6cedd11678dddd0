# SPDX-License-Identifier: Apache-2.0
"""The carrier of the residual stream between two layers that are compiled one by one.

Contract: a `Carrier` stands in place of a tensor of the model. The next layer takes its parts, some of them still in
flight. Other readers, a hook, a norm, a layer that is not compiled, `copy.deepcopy` or `pickle`, get the whole stream,
a plain tensor, without knowing. A carrier is complete in itself, so that no order of calls loses or doubles a part. Its
shape, type and device are known without waiting. Writing into it, or asking for its gradient, is an error: at once
where the carrier is named, else when the next layer takes it (`stream_parts`).
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from farskip_compile._compat.trees import is_alias, leaves_of_type, map_over, register_tree
from farskip_compile.compiler.carrier.stream_parts import StreamParts, refuse_change
from farskip_compile.compiler.carrier.visible_class import visible_class
from farskip_compile.compiler.guard.compilers import traced_by_us
from farskip_compile.errors import PartialModelError
from farskip_compile.passes.boundary.markers import arrive
from farskip_compile.passes.boundary.tail import tail_of

BASE_ATTRIBUTES = frozenset(["shape", "device", "layout", "ndim", "requires_grad", "is_cuda", "is_cpu", "is_meta"])
"""Attributes that the whole stream has in common with its base."""
BASE_METHODS = frozenset(["size", "dim", "numel", "ndimension", "is_floating_point", "get_device", "__len__"])
"""Methods that give the same for the whole stream and for its base."""
WRITES = tuple(
    f"__{name}__" for name in ("setitem", "iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "imatmul")
)
"""Operators that write into a tensor."""
OF_GRADIENTS = frozenset(["register_hook", "register_post_accumulate_grad_hook", "retain_grad", "grad_fn"])
"""Attributes that show the gradient of a tensor. The gradient of the whole stream is never computed, since later layers
take the parts."""


@dataclass(eq=False, repr=False)
class Carrier:
    """A residual stream in parts. A dataclass, since FSDP2 looks for tensors in these.

    FSDP2 and others go through the arguments and outputs of a layer, to cast, to move or to hook tensors. They see the
    base alone, and put another tensor in its place, which was meant for the stream. If that has the same memory, the
    result is a carrier. A cast, a move or a detachment is done to the whole stream, which is then a plain tensor: parts
    in flight must not be touched, and a cast of the base alone would round otherwise.

    Raises:
        PartialModelError: the base was replaced by something else.
    """

    base: torch.Tensor
    parts: StreamParts

    def __new__(cls, base: torch.Tensor, parts: StreamParts) -> Any:
        """Return a carrier, or the whole stream, changed in the way in which the base was changed."""
        old = parts.base
        same = base is old or (base.dtype == old.dtype and base.device == old.device and base.shape == old.shape)
        if same and (base is old or (is_alias(base, old) and base.requires_grad == old.requires_grad)):
            return object.__new__(cls)
        stream = object.__new__(cls)
        stream.base, stream.parts = old, parts
        if same and is_alias(base, old) and not base.requires_grad:
            return stream.whole().detach()
        if not same and base.shape == old.shape:
            return stream.whole().to(device=base.device, dtype=base.dtype)
        raise PartialModelError(
            "a function was mapped over what one layer hands to the next, and changed a part of the residual stream",
            way_out="call it on the tensor: `carrier.whole()` is the residual stream",
        )

    def whole(self) -> torch.Tensor:
        """Return the whole stream, for readers that do not take it in parts; always the same tensor.

        Gradients reach this tensor from what is computed of it, not from later layers. If somebody writes to it, the
        next layer raises a `PartialModelError`.
        """
        if torch.compiler.is_compiling() and _is_traced_by_us():
            return arrive(self.parts.key, self.base, *self.parts.others)
        return self.parts.whole()

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """Return the class that `isinstance` looks at if the carrier's own class does not fit."""
        return visible_class(sys._getframe(1), Carrier, type(self.base))

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("base", "parts"):
            refuse_change(f"{name} = ...")
        object.__setattr__(self, name, value)

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of the whole stream's elements."""
        return tail_of(self.parts.key).dtype

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)  # Python and PyTorch look these up; they are defined below, or absent
        if name in BASE_ATTRIBUTES or name in BASE_METHODS:
            return getattr(self.base, name)
        if name == "register_hook" and str(sys._getframe(1).f_globals.get("__name__")).startswith("torch."):
            return self.base.register_hook  # FSDP2's, to gather parameters in time; the gradient is unused
        written = name.endswith("_") and not name.startswith("_")
        if written or (self.base.requires_grad and name in OF_GRADIENTS):
            refuse_change(name)
        whole = self.whole()
        found = getattr(whole, name)
        if torch.compiler.is_compiling():
            return found
        return functools.partial(_call_method, self, found) if callable(found) else self._carrier_or(found)

    def _carrier_or(self, value: Any) -> Any:
        """Return this carrier if `value` is its whole stream (`contiguous()` returns it), or else `value`."""
        return self if self.parts.is_whole(value) else value

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
        writes = name in WRITES or (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace")
        targets = [kwargs.get("out"), kwargs.get("inputs")]
        if writes or name in OF_GRADIENTS:
            targets += args[:1]
        if function is torch.autograd.grad:
            targets += args[1:2]
        if leaves_of_type(cls, targets):
            refuse_change(name)
        carriers: list[Carrier] = []

        def whole(carrier: Carrier) -> torch.Tensor:
            carriers.append(carrier)
            return carrier.whole()

        args, kwargs = map_over(cls, whole, (args, kwargs))
        result = function(*args, **kwargs)
        return next((carrier for carrier in carriers if carrier.parts.is_whole(result)), result)

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        return copy.deepcopy(self.parts.sum(), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.parts.sum().__reduce_ex__(protocol)

    def __len__(self) -> int:
        return len(self.base)

    def __repr__(self) -> str:
        count = 1 + len(self.parts.others)
        return f"Carrier({count} parts, {tuple(self.base.shape)}, {self.dtype}, tail {self.parts.key})"


def _call_method(carrier: Carrier, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a method of the whole stream of `carrier`."""
    args, kwargs = map_over(Carrier, Carrier.whole, (args, kwargs))
    return carrier._carrier_or(method(*args, **kwargs))


@torch.compiler.assume_constant_result
def _is_traced_by_us() -> bool:
    """Return whether Dynamo traces for this backend, whose graph shows a write into the stream."""
    return traced_by_us()


def _refused_operator(name: str) -> Callable[..., Any]:
    """Return a method for an operator that would write into the stream."""

    def method(self: Carrier, *args: Any) -> Any:
        refuse_change(name)

    return method


def _operator_of_whole(name: str) -> Callable[..., Any]:
    """Return a method that applies an operator to the whole stream."""

    def method(self: Carrier, *args: Any) -> Any:
        others = map_over(Carrier, Carrier.whole, args)
        result = getattr(self.whole(), name)(*others)
        return result if torch.compiler.is_compiling() else self._carrier_or(result)

    return method


for _name in (
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv", "mod", "pow", "rpow", "matmul"),
    *("rmatmul", "and", "or", "xor", "neg", "pos", "abs", "invert"),
    *("lt", "le", "gt", "ge", "eq", "ne", "getitem", "iter", "bool", "float", "int", "array", "contains"),
):
    setattr(Carrier, f"__{_name}__", _operator_of_whole(f"__{_name}__"))
for _name in WRITES:
    setattr(Carrier, _name, _refused_operator(_name))
Carrier.__hash__ = object.__hash__  # type: ignore[method-assign]


def _flatten(carrier: Carrier) -> tuple[list[Any], StreamParts]:
    return [carrier.base], carrier.parts


def _unflatten(leaves: Any, parts: StreamParts) -> Any:
    (base,) = leaves
    return Carrier(base, parts) if isinstance(base, torch.Tensor) else base  # a structure of flags or names, say


register_tree(Carrier, _flatten, _unflatten)
