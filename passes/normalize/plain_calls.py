# SPDX-License-Identifier: Apache-2.0
"""One way to write a call: the first operand, and both of a sum or product, by position; `rsub(a, b)` is `b - a`.

In:    a Dynamo graph.
Out:   the same function, bit for bit. What a later pass reads from `args[0]` is there, however the user gave it:
       `torch.scatter_add(input=shared, ...)` adds into `shared` as `shared.scatter_add(...)` does.
Never: touches a sum with a factor (`alpha`), which rounds in its own way; moves a keyword that is not the first
       parameter of its function.
"""

from __future__ import annotations

import functools
import inspect
import operator
from types import FunctionType

import torch
from torch import fx

from farskip_compile._compat import OpOverload, OpOverloadPacket
from farskip_compile._compat.tensors import parameters
from farskip_compile.passes.graph import ops

FIRST = ("input", "self", "x", "a", "x1")
"""Names of the first operand; the last three are NumPy's, which PyTorch's own functions accept."""
KEYWORDS = (*FIRST, "other")
SUMS = frozenset(["add", "sub", "rsub", "add_", "sub_"])
BINARY = SUMS | {"mul", "div"}


def write_plain_calls(graph: fx.Graph) -> int:
    """Rewrite the calls of `graph` that give operands by keyword, and each `rsub`. Return how many."""
    return sum(_give_first_by_position(node) + _write_binary(node) for node in graph.nodes)


def _give_first_by_position(node: fx.Node) -> bool:
    """Move the first operand of a function from the keywords to the positions; return whether that was done."""
    if node.op != "call_function" or node.args or not node.kwargs:
        return False
    key = next((one for one in FIRST if one in node.kwargs), None)
    if key is None or not _takes_it_first(node.target, key):
        return False
    kwargs = dict(node.kwargs)
    node.args = (kwargs.pop(key),)
    node.kwargs = kwargs
    return True


@functools.lru_cache(maxsize=4096)
def _takes_it_first(target: object, key: str) -> bool:
    """Return whether the first parameter of a function is the one that callers may name `key`."""
    if isinstance(target, FunctionType):  # of a user's function nothing is known
        of_torch = target.__module__.startswith("torch.")
        return of_torch and next(iter(inspect.signature(target).parameters), None) == key
    packet = getattr(torch.ops.aten, ops.function_name(target), None)
    if isinstance(target, OpOverload | OpOverloadPacket) or not isinstance(packet, OpOverloadPacket):
        return False
    firsts = [next(iter(parameters(getattr(packet, name))), None) for name in packet.overloads()]
    return all(first is not None and first.name in ("self", "input") for first in firsts)


def _write_binary(node: fx.Node) -> bool:
    """Give both operands of a sum or product by position, and write `rsub` as `sub`; return whether that was done."""
    name = ops.op_name(node)
    if name not in BINARY or not (node.kwargs or name == "rsub") or not ops.is_floating(node):
        return False
    if node.kwargs.get("alpha", 1) != 1 or any(key not in (*KEYWORDS, "alpha") for key in node.kwargs):
        return False
    operands = [*node.args, *(node.kwargs[key] for key in KEYWORDS if key in node.kwargs)]
    if len(operands) != 2:
        return False
    if name == "rsub":
        node.op, node.target = "call_function", operator.sub
        operands = operands[::-1]
    node.args, node.kwargs = tuple(operands), {}
    return True
