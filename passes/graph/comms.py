# SPDX-License-Identifier: Apache-2.0
"""How an FX node communicates with other ranks.

Contract: that of `ops`: pure questions about one node, on Dynamo's graphs and on ATen's. Besides PyTorch's functional
collectives, operators communicate that a user declared so (`declared`), and those that name a process group.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from torch import fx

from farskip_compile._compat import OpOverload
from farskip_compile._compat.marks import COMMUNICATES
from farskip_compile._compat.tensors import parameters
from farskip_compile.passes.graph import ops
from farskip_compile.passes.graph.declared import declared, group_parameter, part_of_a_collective

GROUP_PARAMETERS = ("group_name", "group", "process_group")
OF_PYTORCH = frozenset(
    ["aten", "prims", "c10d", "c10d_functional", "_c10d_functional", "_c10d_functional_autograd", "_dtensor"]
)
"""Namespaces whose collectives are known."""
OUT_OF_PLACE = frozenset(["higher_order::auto_functionalized", "higher_order::auto_functionalized_v2"])
WAIT_FOR = "farskip::wait_for"
"""What the wait of a declared collective becomes before it is scheduled."""
LINEAR_REDUCTIONS = frozenset({"sum", "avg"})


def is_collective(node: fx.Node) -> bool:
    """A launch of a functional collective (not its wait), or what was declared as one."""
    return (is_functional(node) and not is_wait(node)) or part_of_a_collective(node) == "launch"


def is_functional(node: fx.Node) -> bool:
    """A functional collective of PyTorch, or its wait."""
    return ops.op_name(node).startswith(("_c10d_functional::", "c10d_functional::"))


def is_blocking(node: fx.Node) -> bool:
    """A collective in one operator, which can't be moved apart: declared, or it names a process group."""
    return part_of_a_collective(node) == "blocking" or (COMMUNICATES not in node.meta and _names_a_group(called(node)))


def called(node: fx.Node) -> object:
    """What `node` calls; of what writes in place, and is called out of place by a higher-order operator, that."""
    return node.args[0] if ops.op_name(node) in OUT_OF_PLACE else node.target


def called_name(node: fx.Node) -> str:
    """`op_name` of what is `called`."""
    return ops.function_name(called(node)) if ops.op_name(node) in OUT_OF_PLACE else ops.op_name(node)


@functools.lru_cache(maxsize=4096)
def _names_a_group(target: object) -> bool:
    overload = target if isinstance(target, OpOverload) else getattr(target, "default", None)
    of_pytorch = not isinstance(overload, OpOverload) or overload.namespace in OF_PYTORCH
    return not of_pytorch and _group_parameter(overload) is not None


def process_group(node: fx.Node) -> str:
    """Name of the process group of a launch; empty if an operator that was declared names none."""
    place = _group_parameter(called(node), group_parameter(node))
    if place is None:
        if COMMUNICATES in node.meta:
            return ""
        raise ValueError(f"{node.target} names no process group")
    position, name = place
    positional = position < len(node.args) and called(node) is node.target
    group: object = node.args[position] if positional else node.kwargs.get(name)
    group = ops.fake(group) if isinstance(group, fx.Node) else group  # an input, where one graph serves all ranks
    return str(getattr(group, "group_name", group))


def set_process_group(node: fx.Node, group: str) -> None:
    """Let a launch use another process group."""
    place = _group_parameter(node.target)
    assert place is not None
    position, name = place
    if position < len(node.args):
        node.update_arg(position, group)
    else:
        node.update_kwarg(name, group)


@functools.lru_cache(maxsize=256)
def _group_parameter(target: object, declared_name: str = "") -> tuple[int, str] | None:
    packet = target if isinstance(target, OpOverload) else getattr(target, "default", None)
    if isinstance(packet, OpOverload):
        for position, argument in enumerate(parameters(packet)):
            if argument.name == declared_name or (not declared_name and _is_a_group(argument)):
                return position, argument.name
    return None


def _is_a_group(argument: Any) -> bool:
    """Whether a parameter is a process group, or its name: `group` may as well be a number of columns."""
    return argument.name in GROUP_PARAMETERS and bool(re.search(r"\b(str|Any)\b|ProcessGroup", str(argument.type)))


def is_wait(node: fx.Node) -> bool:
    """The wait of a functional collective, or of what was declared as one."""
    name = ops.op_name(node)
    return name.endswith("c10d_functional::wait_tensor") or name == WAIT_FOR or node.meta.get(COMMUNICATES) == "wait"


def is_all_to_all(node: fx.Node) -> bool:
    """A token exchange: the dispatch or combine of expert parallelism."""
    return "all_to_all" in ops.op_name(node)


def is_gather(node: fx.Node) -> bool:
    """The rows of all ranks, one rank after another, on each of them."""
    return ops.op_name(node) == "_c10d_functional::all_gather_into_tensor"


def is_all_reduce(node: fx.Node) -> bool:
    """A reduction over ranks that each of them gets, as a new tensor."""
    return ops.op_name(node) == "_c10d_functional::all_reduce"


def is_scatter(node: fx.Node) -> bool:
    """A sum over ranks, of which each gets its rows."""
    return ops.op_name(node) == "_c10d_functional::reduce_scatter_tensor"


def is_linear_collective(node: fx.Node) -> bool:
    """A collective C with C(a + b) = C(a) + C(b): a sum or mean reduction, a gather, or the wait of one."""
    name = ops.op_name(node)
    if name not in ops.LINEAR_COLLECTIVES:
        return declared(node) == "reduction"
    return "reduce" not in name or any(str(arg).lower() in LINEAR_REDUCTIONS for arg in node.args[1:2])


def is_redistribution(node: fx.Node) -> bool:
    """A change of a DTensor's placements: a collective, but one that is seen only after differentiation."""
    return ops.op_name(node).endswith(("redistribute", "full_tensor"))
