# SPDX-License-Identifier: Apache-2.0
"""Forms in which one computation is written: rules 2 to 5 of the account.

Contract: pure functions of the name of an operator and of the values that it is given.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Hashable, Sequence
from dataclasses import replace
from types import FunctionType
from typing import Any

import torch

from farskip_compile._compat import OpOverloadPacket
from farskip_compile._compat.tensors import parameters
from farskip_compile.passes.graph import ops
from farskip_compile.verify.normalized.memory import View

OPERANDS = ("self", "input", "other")
FIRST = ("self", "input", "x", "a", "x1")
"""Names of the first operand: those of torch, and that of NumPy."""
Arguments = tuple[str, tuple[Any, ...], dict[str, Any]]
"""The name of an operator, and what it is given."""


def in_plain_words(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], flag: int | None) -> Arguments:
    """Return one form of calls that mean the same: sums, and functions that are told not to write in place."""
    if flag is not None:
        args = tuple(False if place == flag else one for place, one in enumerate(args))
        kwargs = {key: one for key, one in kwargs.items() if key != "inplace"}
    first = next((key for key in FIRST if key in kwargs), "")
    if first and not args and takes_first(name, first):
        args, kwargs = (kwargs[first],), {key: one for key, one in kwargs.items() if key != first}
    if name in ("mul", "div") and kwargs.keys() == {"other"}:
        args, kwargs = (*args, kwargs["other"]), {}
    if name in ("add", "sub", "rsub"):
        kwargs = {key: one for key, one in kwargs.items() if key != "alpha" or one != 1}
        if not kwargs.keys() - {*OPERANDS}:
            args, kwargs = (*args, *(kwargs[key] for key in OPERANDS if key in kwargs)), {}
        if name == "rsub" and len(args) == 2 and not kwargs:
            return "sub", args[::-1], {}
    if name == "setitem" and is_put(args):
        target, key, value = args
        return "index_put", (target, indices_of(key), value), {}
    if name == "getitem" and len(args) == 2 and indices_of(args[1]):
        return "index", (args[0], indices_of(args[1])), kwargs
    return name, args, kwargs


@functools.lru_cache(maxsize=4096)
def takes_first(name: str, key: str) -> bool:
    """Return whether the first parameter of a function of torch is the one that callers may name `key`."""
    for module in (torch.nn.functional, torch):
        function = getattr(module, name, None)
        if isinstance(function, FunctionType):
            return next(iter(inspect.signature(function).parameters), "") == key
    packet = getattr(torch.ops.aten, name, None)
    overloads = packet.overloads() if isinstance(packet, OpOverloadPacket) else []
    firsts = {one.name for overload in overloads for one in parameters(getattr(packet, overload))[:1]}
    return bool(firsts) and firsts <= {"self", "input"}


def indices_of(key: Any) -> tuple[Any, ...]:
    """Return the tensors of `a[key]`, None for a dimension that is taken whole; nothing if it has other parts."""
    parts = list(key) if isinstance(key, tuple) else [key]
    while parts and (parts[-1] is Ellipsis or parts[-1] == slice(None)):
        parts.pop()
    found = tuple(None if isinstance(one, slice) and one == slice(None) else one for one in parts)
    tensors = [one for one in found if isinstance(one, View)]
    return found if tensors and len(tensors) + found.count(None) == len(found) else ()


def is_put(args: Sequence[Any]) -> bool:
    """Return whether `a[key] = value` picks elements by tensors, and casts nothing."""
    target, key, value = args
    if not indices_of(key) or not isinstance(target, View) or not isinstance(value, View):
        return False
    return bool(value.fake.dtype == target.fake.dtype)


def is_cast(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Return whether this is `x.to(dtype)`, with or without a copy."""
    return (
        name == "to"
        and len(args) == 2
        and isinstance(args[1], torch.dtype)
        and not kwargs.keys() - {"copy", "memory_format"}
    )


def is_copy(name: str, args: Sequence[Any]) -> bool:
    """Return whether this is `a.copy_(b)` of a tensor of the shape of `a`."""
    if name != "copy" or len(args) < 2 or not all(isinstance(one, View) for one in args[:2]):
        return False
    return ops.same_shape(args[0].fake, args[1].fake)


def joined(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[View, tuple[Hashable, ...]] | None:
    """Return what all chunks of a tensor were made of, if this puts them together along another dimension, and how.

    That is: the dimension that was cut, the one along which they are put together, and how many there are.
    """
    if name == "flatten" and len(args) == 3 and isinstance(args[0], View) and args[0].note[:1] == ("moved",):
        _, source, cut, along, chunks = args[0].note
        return (source, ("joined", cut, along, chunks)) if args[1:] == (along, along + 1) else None
    parts = args[0] if name == "cat" and args and isinstance(args[0], tuple) else ()
    if not parts or not all(isinstance(one, View) and one.note[:1] == ("chunk",) for one in parts):
        return None
    along = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    _, token, source, cut, chunks, _ = parts[0].note
    if [(one.note[1], one.note[5]) for one in parts] != [(token, place) for place in range(chunks)]:
        return None
    if not isinstance(along, int) or along % source.fake.dim() == cut:
        return None
    return source, ("joined", cut, along % source.fake.dim(), chunks)


def noted(name: str, args: Sequence[Any], kwargs: dict[str, Any], result: Any, token: object) -> Any:
    """Return `result` with a note of how it was made, if `joined` asks for that."""
    source = args[0] if args else None
    if not isinstance(source, View):
        return result
    dims = source.fake.dim()
    if name == "chunk" and isinstance(result, tuple):
        cut = args[2] if len(args) > 2 else kwargs.get("dim", 0)
        if isinstance(cut, int):
            notes = (("chunk", token, source, cut % dims, len(result), place) for place in range(len(result)))
            return tuple(replace(one, note=note) for one, note in zip(result, notes, strict=True))
    if name == "unflatten" and len(args) == 3 and isinstance(args[1], int) and _is_pair(args[2]):
        return replace(result, note=("unflattened", source, args[1] % dims, args[2][0]))
    if name == "movedim" and source.note[:1] == ("unflattened",) and len(args) == 3:
        _, whole, cut, chunks = source.note
        if args[1] == cut and isinstance(args[2], int):
            return replace(result, note=("moved", whole, cut, args[2] % dims, chunks))
    return result


def _is_pair(sizes: Any) -> bool:
    """Return whether `sizes` are a number of chunks, and what is left."""
    return isinstance(sizes, tuple) and len(sizes) == 2 and isinstance(sizes[0], int) and sizes[1] == -1
