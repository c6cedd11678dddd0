# SPDX-License-Identifier: Apache-2.0
"""Close again the activation checkpoints with a selective policy: it decides when AOTAutograd meets their operators.

In:    a Dynamo graph in which `open_checkpoints` has noted, on each node of such a checkpoint, which one it is of.
Out:   the same function; the nodes of each of these checkpoints are one `tag_activation_checkpoint` node again, with
       its policy, and with what rewiring has put among them.
Never: moves a node past one that it depends on; changes the order of nodes that do more than compute a value.

Algorithm, for each such checkpoint:
1. Make its nodes contiguous: move any other node between them to the front, or to the back if it depends on one.
2. What they take from outside are arguments of the body, what is used outside its results.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from farskip_compile._compat import CHECKPOINT, POLICY
from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.passes.graph import effects, ops, user_calls

SELECTIVE = "farskip_selective"
"""Key of a node's `meta`: the `Selective` that it is of."""


@dataclass(frozen=True, eq=False)
class Selective:
    """A checkpoint with a policy."""

    context_fn: Any
    kwargs: dict[str, Any]
    """Of the node: those of `torch.utils.checkpoint` alone."""
    meta: dict[str, Any]
    """Of the node."""


def close_checkpoints(module: fx.GraphModule) -> int:
    """Close the selective checkpoints of `module`, in place; returns how many there are.

    Raises:
        UnsupportedPatternError: a node outside would have to run between two nodes of a checkpoint.
    """
    members: dict[Selective, list[fx.Node]] = {}
    for node in module.graph.nodes:
        if (one := node.meta.pop(SELECTIVE, None)) is not None and node.op not in ("placeholder", "output"):
            members.setdefault(one, []).append(node)
    for number, (checkpoint, nodes) in enumerate(members.items()):
        _close(module, checkpoint, nodes, f"farskip_checkpoint_{number}")
    return len(members)


def _close(module: fx.GraphModule, checkpoint: Selective, nodes: Sequence[fx.Node], name: str) -> None:
    inside = {node for node in nodes if not _is_tensor_attribute(module, node)}
    _part(module.graph, inside)  # 1
    body, given = fx.Graph(module), dict[fx.Node, fx.Node]()
    order = [node for node in module.graph.nodes if node in inside]
    for arg in dict.fromkeys(arg for node in order for arg in node.all_input_nodes if arg not in inside):
        twin = given[arg] = body.placeholder(arg.name)
        twin.meta = dict(arg.meta)
    twins = dict(given)
    for node in order:
        twins[node] = body.node_copy(node, twins.__getitem__)
    results = [node for node in order if any(user not in inside for user in node.users)]
    for node in results:
        if ops.tensor(node) is None:
            raise _error(node, "one of its results is used outside of it, and is not a tensor")
    body.output(tuple(twins[node] for node in results))
    attributes = {str(node.target).split(".")[0] for node in order if node.op == "get_attr"}
    made = fx.GraphModule({one: getattr(module, one) for one in attributes}, body)
    made.meta[POLICY] = checkpoint.context_fn
    module.add_module(name, made)
    with module.graph.inserting_after(order[-1]):
        held = module.graph.get_attr(name)
    with module.graph.inserting_after(held):
        call = module.graph.call_function(CHECKPOINT, (held, *given), dict(checkpoint.kwargs))
    call.meta = {**checkpoint.meta, "example_value": tuple(ops.fake(node) for node in results)}
    for place, node in reversed(list(enumerate(results))):
        with module.graph.inserting_after(call):
            result = module.graph.call_function(operator.getitem, (call, place))
        result.meta = {"example_value": ops.fake(node)}
        for user in [user for user in node.users if user not in inside]:
            user.replace_input_with(node, result)
    for node in reversed(order):
        module.graph.erase_node(node)


def _is_tensor_attribute(module: fx.GraphModule, node: fx.Node) -> bool:
    """A constant of the graph: it stays outside, where its gradient is."""
    return node.op == "get_attr" and isinstance(getattr(module, str(node.target), None), torch.Tensor)


def _part(graph: fx.Graph, inside: set[fx.Node]) -> None:
    """Step 1."""
    order = list(graph.nodes)
    places = [place for place, node in enumerate(order) if node in inside]
    span = order[places[0] : places[-1] + 1]
    after: set[fx.Node] = set()
    for node in span:
        needs = not after.isdisjoint(node.all_input_nodes)
        if node in inside:
            if needs:
                raise _error(node, "it needs what stands outside and needs an earlier part of it")
        elif needs or not inside.isdisjoint(node.all_input_nodes):
            after.add(node)
    moved = [node for node in span if node not in inside]
    if any(not effects.is_pure(node) for node in moved if node.op.startswith("call")):
        raise _error(span[0], "something that does more than compute a value stands among its nodes")
    for node in moved:
        if node not in after:
            span[0].prepend(node)
    last = span[-1]
    for node in moved:
        if node in after:
            last.append(node)
            last = node


def _error(node: fx.Node, reason: str) -> UnsupportedPatternError:
    return UnsupportedPatternError(
        f"a checkpoint with a selective policy can't be closed again after rewiring: {reason}",
        way_out="use torch.utils.checkpoint without context_fn, or torch._functorch's activation_memory_budget",
        where=user_calls.where(node),
    )
