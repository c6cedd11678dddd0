# SPDX-License-Identifier: Apache-2.0
"""The arguments that a call in a Dynamo graph writes to, and the operator that computes the same out of place.

Contract: answered from the target alone: the schema of a registered operator; of a function or method of torch the
promises of its name and parameters. Says more writes than there are in doubt: of a function of unknown content, that it
may write to everything that it is given.

The operator that writes in place and the one that does not have one name here, without the trailing underscore of
`add_`, the `i` of `operator.iadd`, the parameter `inplace`: torch promises that they compute the same, and that the
first then casts to the type of what it writes to.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch

from farskip_compile._compat import HigherOrderOperator, OpOverload, OpOverloadPacket
from farskip_compile._compat.tensors import overload_name, parameters, qualified_name

TWINS = {
    name: getattr(operator, name[1:], None) or getattr(operator, f"{name[1:]}_")
    for name in (
        *("iadd", "isub", "imul", "imatmul", "itruediv", "ifloordiv", "imod", "ipow"),
        *("iand", "ior", "ixor", "ilshift", "irshift"),
    )
}
"""The functions of `operator` that write in place, and those that do not."""
FLAGS = frozenset(["requires_grad_", "retain_grad_"])
"""Methods that write no data although their names say so."""
OWN = ("torch", "_operator", "operator", "math", "builtins")
"""Modules whose functions write to what their names say, and to nothing else."""


@dataclass(frozen=True, slots=True)
class Callee:
    """The facts that all calls of one target have in common."""

    name: str
    """The name of the operator that computes the same out of place."""
    written: tuple[tuple[int, str], ...] = ()
    """Position and name of the parameters that are written to."""
    replaces_first: bool = False
    """True if a call writes its result to its first argument, and does nothing else."""
    flag: int | None = None
    """Position of the parameter `inplace`."""
    may_write_all: bool = False
    """True if the content that a call leaves is not known."""
    is_random: bool = False
    is_ordered: bool = False
    """True if a call may do more than compute and write, such as communicate."""
    twin: Callable[..., Any] | None = None
    """The function that computes the same out of place, to be called with the same arguments."""

    def writes_to(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Return the arguments of a call that are written to."""
        first = args[:1] or tuple(kwargs[key] for key in ("self", "input") if key in kwargs)
        found = [
            args[place] if place < len(args) else kwargs.get(name, first if place == 0 else None)
            for place, name in self.written
        ]
        if self.flag is not None and (kwargs.get("inplace") or args[self.flag : self.flag + 1] == (True,)):
            found.extend(first)
        if "out" in kwargs and all(name != "out" for _, name in self.written):
            found.append(kwargs["out"])
        return found


def callee_of(target: Any, is_method: bool) -> Callee:
    """Return what is known of `target`, a function or the name of a method."""
    if is_method:
        name = str(target)
        return _of_torch(_plain(name), writes_by_name(name), getattr(torch.Tensor, _plain(name), None))
    if isinstance(target, OpOverload | OpOverloadPacket):
        return _of_schema(target)
    if isinstance(target, HigherOrderOperator):
        return Callee(f"higher_order::{target.name()}", may_write_all=True, is_ordered=True)
    return _of_function(target)


def _of_function(target: Any) -> Callee:
    name = str(getattr(target, "__name__", target))
    module = str(getattr(target, "__module__", None) or "builtins")
    if module.partition(".")[0] not in OWN:
        return Callee(f"{module}.{name} {id(target)}", may_write_all=True, is_ordered=True)
    if module == "_operator":
        twin = TWINS.get(name)
        return _of_torch(twin.__name__ if twin else name, twin is not None or name == "setitem", twin)
    twin = getattr(torch, _plain(name), None) or getattr(torch.nn.functional, _plain(name), None)
    found = _of_torch(_plain(name), writes_by_name(name), twin)
    flag = _flag(target)
    if flag is None or found.replaces_first:
        return found
    return Callee(found.name, found.written, flag=flag, is_random=found.is_random, twin=target)


def writes_by_name(name: str) -> bool:
    """Return whether a function or method of torch is in place by its name."""
    return name.endswith("_") and not name.endswith("__") and name not in FLAGS


def _plain(name: str) -> str:
    return name.removesuffix("_") if writes_by_name(name) else name


def _of_torch(plain: str, writes_first: bool, twin: Any) -> Callee:
    written = ((0, "self"),) if writes_first else ()
    return Callee(plain, written, writes_first, is_random=_is_random(plain), twin=twin if writes_first else None)


def _of_schema(target: OpOverload | OpOverloadPacket) -> Callee:
    if isinstance(target, OpOverload):
        packet, overload, overloads = target.overloadpacket, overload_name(target), [target]
    else:
        packet, overload, overloads = target, "", [getattr(target, name) for name in target.overloads()]
    written = {
        (10**6 if argument.kwarg_only else place, argument.name): None
        for overload in overloads
        for place, argument in enumerate(parameters(overload))
        if argument.alias_info is not None and argument.alias_info.is_write
    }
    namespace, _, name = qualified_name(packet).partition("::")
    if namespace not in ("aten", "prims"):
        return Callee(f"{namespace}::{name}.{overload}", tuple(written), is_ordered=True)
    replaces_first = [place for place, _ in written] == [0] and writes_by_name(name)
    plain = name.removesuffix("_") if replaces_first else name
    twin = getattr(torch.ops.aten, plain, None) if replaces_first else None
    if twin is not None and overload:
        twin = getattr(twin, overload, None)
    return Callee(plain, tuple(written), replaces_first, is_random=_is_random(plain), twin=twin)


def _flag(target: Any) -> int | None:
    if not isinstance(target, FunctionType):
        return None
    names = list(inspect.signature(target).parameters)
    return names.index("inplace") if "inplace" in names else None


def _is_random(name: str) -> bool:
    packet = getattr(torch.ops.aten, name, None)
    if not isinstance(packet, OpOverloadPacket):
        packet = getattr(torch.ops.aten, f"{name}_", None)
    if not isinstance(packet, OpOverloadPacket):
        return False
    return any(torch.Tag.nondeterministic_seeded in getattr(packet, one).tags for one in packet.overloads())
