# SPDX-License-Identifier: Apache-2.0
"""Which collectives a node of a Dynamo graph launches, including those that appear only after differentiation.

In:    one node.
Out:   the names of the collectives that it launches in the forward pass, as the functional operators are called.
Never: looks further than into the bodies of the node itself.

A launch is a collective itself. An `autograd.Function` is a node with a body for each direction; the first one counts.
A redistribution of a DTensor becomes a collective only after differentiation: its placements before and after show
which.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx

from farskip_compile.passes.graph import comms, ops
from farskip_compile.passes.graph.walk import bodies


def collectives_of(node: fx.Node) -> Iterator[str]:
    """The collectives that `node` launches, in order."""
    name = ops.op_name(node)
    if "::" in name and comms.is_collective(node):
        yield name.split("::")[1]
    elif name.startswith("higher_order::"):
        found = bodies(node)
        for body in found[:1] if name == "higher_order::autograd_function_apply" else found:
            for inner in body.graph.nodes:
                yield from collectives_of(inner)
    elif comms.is_redistribution(node):
        yield from _between(_placements(node.args[0]), _placements(node))


def hidden_launch(node: fx.Node) -> fx.Node | None:
    """What launches the collective of which `node` is the result, a plain tensor, with a wait that is seen only after
    differentiation: a redistribution, or an `autograd.Function` that ends with it. None if there is none."""
    if not isinstance(ops.fake(node), torch.Tensor) or _placements(node) or not node.args:
        return None
    name, source = ops.op_name(node), node.args[0]
    if not isinstance(source, fx.Node):
        return None
    if name == "getitem" and ops.op_name(source) == "higher_order::autograd_function_apply":
        return source if _ends_in_a_wait(bodies(source)[:1], node.args[1]) else None
    launch = source if name.endswith("to_local") else node
    return launch if comms.is_redistribution(launch) and any(collectives_of(launch)) else None


def group_of(launch: fx.Node) -> str:
    """The name of the process group of the last collective that is launched; empty if there is none."""
    if not comms.is_redistribution(launch):
        found = [one for body in bodies(launch)[:1] for one in ops.calls(body.graph, comms.is_collective)]
        return comms.process_group(found[-1]) if found else ""
    value: Any = ops.fake(launch.args[0]) if isinstance(launch.args[0], fx.Node) else None
    before, after = _placements(launch.args[0]), _placements(launch)
    sends = [at for at, old in enumerate(before) if any(_between((old,), after[at : at + 1]))]
    return str(value.device_mesh.get_group(sends[-1]).group_name) if sends else ""


def _ends_in_a_wait(found: Sequence[fx.GraphModule], place: object) -> bool:
    """Whether the output of a forward body in this place is what a collective gives, or memory that it is copied to."""
    for body in found:
        (output,) = body.graph.find_nodes(op="output")
        values: Any = output.args[0]
        value = values[0][place] if isinstance(place, int) and isinstance(values[0], tuple | list) else None
        while isinstance(value, fx.Node) and ops.op_name(value) in ops.VIEWS:
            value = value.args[0]
        copied = [user.args[1] for user in getattr(value, "users", ()) if ops.op_name(user) == "copy_"]
        return any(isinstance(one, fx.Node) and comms.is_wait(one) for one in (value, *copied[-1:]))
    return False


def _placements(value: object) -> tuple[Any, ...]:
    """The placements of a DTensor on its mesh; empty for anything else."""
    return tuple(getattr(ops.fake(value), "placements", ())) if isinstance(value, fx.Node) else ()


def _between(before: tuple[Any, ...], after: tuple[Any, ...]) -> Iterator[str]:
    """The collectives that bring a DTensor from one placement to the other (none: whole), by mesh dimension."""
    for index, old in enumerate(before):
        new = after[index] if after else None
        if old == new or old.is_replicate():
            continue
        whole = new is None or new.is_replicate()
        if old.is_partial():
            yield "all_reduce" if whole else "reduce_scatter_tensor"
        elif old.is_shard():
            yield "all_gather_into_tensor" if whole else "all_to_all_single"
