"""The private parts of registered operators: names and schemas; a part of `_compat`.

Contract: for graph passes, which know operators as the targets of nodes. Callers keep what they ask often.
"""

from __future__ import annotations

from typing import Any

from torch._ops import OpOverload, OpOverloadPacket

__all__ = ["overload_name", "parameters", "qualified_name"]


def qualified_name(packet: OpOverloadPacket) -> str:
    """`namespace::name` of an operator."""
    return str(packet._qualified_op_name)


def overload_name(operator: OpOverload) -> str:
    """Name of an overload: `default`, `Tensor`, ..."""
    return str(operator._overloadname)


def parameters(operator: OpOverload) -> list[Any]:
    """The parameters of an overload, in order: objects with `name` and `alias_info`."""
    return list(operator._schema.arguments)
