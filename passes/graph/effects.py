# SPDX-License-Identifier: Apache-2.0
"""What an FX node does besides computing a value, and which memory a value is in.

Contract: pure questions about one node, answered from its target, its arguments and its fake value, as in `ops`.
A write is known by the schema of a registered operator; of Python's functions and tensor methods by what the names
promise: a trailing underscore, `out`, a parameter `inplace`.
"""

from __future__ import annotations

import functools
import inspect
import operator
import sys
from collections.abc import Iterable
from types import FunctionType

import torch
from torch import fx

from farskip_compile._compat import OpOverload, OpOverloadPacket
from farskip_compile._compat.tensors import parameters, storage_identity
from farskip_compile.passes.graph import comms, ops


def is_pure(node: fx.Node) -> bool:
    """Computes a value and does nothing else: no write, no randomness, no collective, no switch such as autocast."""
    if node.op not in ("call_function", "call_method") or node.is_impure():
        return False
    name = ops.op_name(node)
    if name.startswith("higher_order::") or comms.is_collective(node) or comms.is_wait(node) or mutated_args(node):
        return False
    return not is_random(node)


def may_be_random(node: fx.Node) -> bool:
    """Return whether a function or method can draw from a generator, by the tag of its ATen operator."""
    return _names_random(ops.op_name(node))


def is_random(node: fx.Node) -> bool:
    """Return whether this call draws from a generator."""
    return may_be_random(node) and not ops.is_inactive_dropout(node) and not _drops_nothing(node)


def _drops_nothing(node: fx.Node) -> bool:
    """Whether this is an attention without dropout."""
    if ops.op_name(node) != "scaled_dot_product_attention":
        return False
    dropped = node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0.0)
    return isinstance(dropped, int | float) and dropped == 0


@functools.lru_cache(maxsize=4096)
def _names_random(name: str) -> bool:
    packet = getattr(torch.ops.aten, name.rstrip("_"), None) or getattr(torch.ops.aten, name, None)
    if not isinstance(packet, OpOverloadPacket) or "::" in name:
        return False
    tags = (getattr(packet, overload).tags for overload in packet.overloads())
    return any(torch.Tag.nondeterministic_seeded in tag for tag in tags)


def mutated_args(node: fx.Node) -> list[fx.Node]:
    """The arguments that `node` writes to."""
    if node.op not in ("call_function", "call_method"):
        return []
    kwargs = node.kwargs
    if not (can_write(node) or "out" in kwargs or "inplace" in kwargs):
        return []
    written: list[object] = []
    if isinstance(node.target, OpOverload | OpOverloadPacket):
        for index, name in _written_parameters(node.target):
            written.append(node.args[index] if index < len(node.args) else node.kwargs.get(name))
    else:
        if node.args and (_writes_first(node.target, node.op == "call_function") or is_inplace_call(node)):
            written.append(node.args[0])
        if "out" in node.kwargs:
            written.append(node.kwargs["out"])
    found: list[fx.Node] = []
    for value in written:
        parts = value if isinstance(value, tuple | list) else (value,)
        found += [part for part in parts if isinstance(part, fx.Node) and ops.tensor(part) is not None]
    return found


def writers(nodes: Iterable[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """The nodes that write to an argument, with what they write to; operators that never do are asked once."""
    never: dict[object, bool] = {}
    found = {}
    for node in nodes:
        if node.op not in ("call_function", "call_method"):
            continue
        if not node.kwargs:
            answer = never.get(node.target)
            if answer is None:
                answer = never[node.target] = not can_write(node)
            if answer:
                continue
        if bases := mutated_args(node):
            found[node] = bases
    return found


def can_write(node: fx.Node) -> bool:
    """Whether a call of this function without keywords may write to an argument; depends on the function alone."""
    key = node.target if isinstance(node.target, str) else id(node.target)
    known = _writers.get(key)
    if known is None:
        if len(_writers) >= ops.NAMES:
            _writers.clear()
        known = _writers[key] = node.target, _can_write(node)
    return known[1]


_writers: dict[object, tuple[object, bool]] = {}
"""By identity, as `ops` remembers names."""


def _can_write(node: fx.Node) -> bool:
    target = node.target
    if isinstance(target, OpOverload | OpOverloadPacket):
        return bool(_written_parameters(target))
    return _writes_first(target, node.op == "call_function") or inplace_position(target) is not None


def is_inplace_call(node: fx.Node) -> bool:
    """Whether a function such as `torch.nn.functional.relu` is asked to write its first argument."""
    if "inplace" in node.kwargs:
        return node.kwargs["inplace"] is True
    position = inplace_position(node.target)
    return position is not None and position < len(node.args) and node.args[position] is True


@functools.lru_cache(maxsize=4096)
def inplace_position(target: object) -> int | None:
    """Position of a function's parameter `inplace`, if it has one."""
    if not isinstance(target, FunctionType):
        return None  # builtin: writes by its name, or by `out`
    names = list(inspect.signature(target).parameters)
    return names.index("inplace") if "inplace" in names else None


@functools.lru_cache(maxsize=4096)
def _written_parameters(target: OpOverload | OpOverloadPacket) -> tuple[tuple[int, str], ...]:
    """Position and name of the parameters that the schema of `target`, or any overload of a packet, marks as written.

    A keyword-only parameter has a position that no call reaches.
    """
    overloads = [target] if isinstance(target, OpOverload) else [getattr(target, name) for name in target.overloads()]
    written: dict[tuple[int, str], None] = {}
    for overload in overloads:
        for index, argument in enumerate(parameters(overload)):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written[sys.maxsize if argument.kwarg_only else index, argument.name] = None
    return tuple(written)


@functools.lru_cache(maxsize=4096)
def _writes_first(target: object, is_function: bool) -> bool:
    """Whether a method or function is in place by its name: `add_`, `operator.iadd`, `operator.setitem`."""
    name = ops.function_name(target) if is_function else str(target)
    if name == "requires_grad_":
        return False  # a flag, not data
    if not is_function or getattr(target, "__module__", "") != "_operator":
        return name.endswith("_") and not name.endswith("__") and "::" not in name
    # here an underscore only avoids a keyword: operator.and_ writes nothing
    in_place_twin = name.startswith("i") and (hasattr(operator, name[1:]) or hasattr(operator, f"{name[1:]}_"))
    return name == "setitem" or in_place_twin


def storage(node: fx.Node) -> int | None:
    """Identity of the memory of `node`: equal for a tensor and its views."""
    if "farskip_storage" in node.meta:
        return int(node.meta["farskip_storage"])
    value = ops.tensor(node)
    if value is None:
        return None
    try:
        return storage_identity(value)
    except (NotImplementedError, RuntimeError):  # wrapper subclasses own no storage of their own
        return id(value)
