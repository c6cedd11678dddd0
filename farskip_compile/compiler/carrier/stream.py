# SPDX-License-Identifier: Apache-2.0
"""The residual stream between two layers that are compiled one by one: its parts, and how they make the whole.

Contract: a `Carrier` stands where a tensor of the model's would. The next layer takes its parts, some of them still in
flight. Whoever else reads it, a hook, a norm, a layer that is not compiled, `copy.deepcopy` or `pickle`, gets the whole
stream, a plain tensor, without knowing. A carrier is complete in itself, so that no order of calls loses or doubles a
part. Asking for its shape, type or device waits for nothing. Writing into it, or asking for its gradient, is an error:
at once where the carrier is named, else when the next layer takes it (`handed_out`).
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
from farskip_compile.compiler.carrier.asked import class_for
from farskip_compile.compiler.carrier.handed_out import Rest, refuse_change
from farskip_compile.compiler.guard.compilers import traced_by_us
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
OF_GRADIENTS = frozenset(["register_hook", "register_post_accumulate_grad_hook", "retain_grad", "grad_fn"])
"""Attributes through which somebody sees the gradient of a tensor: that of the whole stream is never computed, since
later layers take the parts."""


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
        """Return the stream, for whoever is not a layer that takes it in parts; always the same tensor.

        Gradients reach it from what is computed of it alone, not from later layers. If it is written to, the next layer
        raises a `PartialModelError`.
        """
        if torch.compiler.is_compiling() and _is_traced_by_us():
            return arrive(self.rest.key, self.base, *self.rest.others)
        return self.rest.whole()

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """The class that `isinstance` sees where a carrier is no instance of the class that is asked for."""
        return class_for(sys._getframe(1), Carrier, type(self.base))

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("base", "rest"):
            refuse_change(f"{name} = ...")
        object.__setattr__(self, name, value)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the whole stream's elements."""
        return tail_of(self.rest.key).dtype

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)  # what Python and PyTorch look up on their own is given below, or absent
        if name in KNOWN or name in ASKED:
            return getattr(self.base, name)
        if name == "register_hook" and str(sys._getframe(1).f_globals.get("__name__")).startswith("torch."):
            return self.base.register_hook  # FSDP2's, to gather parameters in time: the gradient's value is not asked
        _refuse_if_changing(name, needs_gradient=self.base.requires_grad)
        whole = self.whole()
        found = getattr(whole, name)
        if torch.compiler.is_compiling():
            return found
        return functools.partial(_call, self, found) if callable(found) else self._unless_same(found)

    def _unless_same(self, found: Any) -> Any:
        """Return `found`, or this carrier in place of its stream, which `contiguous()` and others give back."""
        return self if self.rest.is_whole(found) else found

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
        changed = name in WRITES or (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace")
        targets = [*(args[:1] if changed or name in OF_GRADIENTS else ()), kwargs.get("out"), kwargs.get("inputs")]
        if function is torch.autograd.grad:
            targets += args[1:2]
        if leaves_of_type(cls, targets):
            refuse_change(name)
        found: list[Carrier] = []
        args, kwargs = map_over(cls, functools.partial(_noted, found), (args, kwargs))
        result = function(*args, **kwargs)
        return next((carrier for carrier in found if carrier.rest.is_whole(result)), result)

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        return copy.deepcopy(self.rest.fresh(), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.rest.fresh().__reduce_ex__(protocol)

    def __len__(self) -> int:
        return len(self.base)

    def __repr__(self) -> str:
        parts = 1 + len(self.rest.others)
        return f"Carrier({parts} parts, {tuple(self.base.shape)}, {self.dtype}, tail {self.rest.key})"


def _noted(found: list[Carrier], carrier: Carrier) -> torch.Tensor:
    found.append(carrier)
    return carrier.whole()


def _call(carrier: Carrier, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a method of the whole stream of `carrier`."""
    args, kwargs = map_over(Carrier, Carrier.whole, (args, kwargs))
    return carrier._unless_same(method(*args, **kwargs))


@torch.compiler.assume_constant_result
def _is_traced_by_us() -> bool:
    """Return whether Dynamo traces for this backend, which sees a write into the stream in its graph."""
    return traced_by_us()


def _refuse_if_changing(name: str, *, needs_gradient: bool) -> None:
    written = name.endswith("_") and not name.startswith("_")
    if written or (needs_gradient and name in OF_GRADIENTS):
        refuse_change(name)


def _written(name: str) -> Callable[..., Any]:
    """An operator that writes into the stream."""

    def method(self: Carrier, *args: Any) -> Any:
        refuse_change(name)

    return method


def _through(name: str) -> Callable[..., Any]:
    """An operator of the whole stream."""

    def method(self: Carrier, *args: Any) -> Any:
        others = map_over(Carrier, Carrier.whole, args)
        result = getattr(self.whole(), name)(*others)
        return result if torch.compiler.is_compiling() else self._unless_same(result)

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
