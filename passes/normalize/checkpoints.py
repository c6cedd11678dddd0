# SPDX-License-Identifier: Apache-2.0
"""Open activation checkpoints, so that the residual stream is visible from end to end.

In:    a Dynamo graph, in which each `torch.utils.checkpoint` region is one `tag_activation_checkpoint` node.
Out:   the same function; the bodies are in the graph, and their nodes carry the tags that make AOTAutograd's
       partitioner recompute them in the backward pass, as it would have with the bodies closed.
Never: changes what is recomputed or how randomness is drawn.

Algorithm, for each such node:
1. Map the body's placeholders to the call's arguments.
2. Copy the body's nodes before the call, tagged `recompute` and `ac_graph_id` (one id for each region). Those of a
   region with a selective policy are noted as such, for `closing`.
3. Replace the call's results with the copies of the body's outputs; erase the call and the body.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from torch import fx

from farskip_compile._compat import POLICY, PREFER_RECOMPUTE, split_checkpoint_kwargs
from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.passes.graph import effects, ops, user_calls
from farskip_compile.passes.normalize.closing import SELECTIVE, Selective


def open_checkpoints(module: fx.GraphModule) -> int:
    """Open all non-reentrant checkpoints of `module`, nested ones too.

    Returns:
        How many regions were opened.

    Raises:
        UnsupportedPatternError: a region's results are used in a way that is not known.
    """
    opened = 0
    while calls := ops.calls(module.graph, lambda n: ops.op_name(n) == "higher_order::tag_activation_checkpoint"):
        for call in calls:
            opened += 1
            _open(module, call, region=opened)
    return opened


def _open(module: fx.GraphModule, call: fx.Node, region: int) -> None:
    body_node = call.args[0]
    assert isinstance(body_node, fx.Node)
    body = getattr(module, str(body_node.target))
    checkpoint_kwargs, body_kwargs = split_checkpoint_kwargs(call.kwargs)
    policy = body.meta.get(POLICY, checkpoint_kwargs.get("context_fn"))
    selective = Selective(policy, checkpoint_kwargs, dict(call.meta)) if policy is not None else None
    placeholders = [node for node in body.graph.nodes if node.op == "placeholder"]
    copies = dict(zip(placeholders, [*call.args[1:], *body_kwargs.values()], strict=True))  # 1
    with module.graph.inserting_before(call):
        _copy_body(module, body, copies, selective or region)  # 2
    _replace_results(call, body, copies)  # 3
    module.graph.erase_node(call)
    if not body_node.users:
        module.graph.erase_node(body_node)


def _copy_body(
    module: fx.GraphModule, body: fx.GraphModule, copies: dict[fx.Node, Any], region: int | Selective
) -> None:
    """Copy the nodes of `body` but its placeholders, and enter them in `copies`."""
    outer_storage = {
        effects.storage(placeholder): outer
        for placeholder, value in copies.items()
        if isinstance(value, fx.Node) and (outer := effects.storage(value)) is not None
    }
    outer_storage.pop(None, None)
    for node in body.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        if node.op == "get_attr":
            copies[node] = _copy_attribute(module, body, node)
            continue
        copy = module.graph.node_copy(node, copies.__getitem__)
        if isinstance(region, Selective):
            copy.meta.setdefault(SELECTIVE, region)
        else:
            copy.meta.setdefault("recompute", PREFER_RECOMPUTE)
            copy.meta.setdefault("ac_graph_id", region)
        # views of the body's arguments must be known as views of the outer tensors
        if (inner := effects.storage(node)) in outer_storage:
            copy.meta["farskip_storage"] = outer_storage[inner]
        copies[node] = copy


def _replace_results(call: fx.Node, body: fx.GraphModule, copies: Mapping[fx.Node, Any]) -> None:
    (output,) = body.graph.find_nodes(op="output")
    results = fx.map_arg(output.args[0], copies.__getitem__)
    for user in list(call.users):
        if user.target is not operator.getitem:
            raise UnsupportedPatternError("a checkpoint's results are used as a whole", where=user_calls.where(user))
        user.replace_all_uses_with(results[user.args[1]])
        call.graph.erase_node(user)


def _copy_attribute(module: fx.GraphModule, body: fx.GraphModule, node: fx.Node) -> fx.Node:
    """A sub-module or constant of the body, moved to the outer module under a free name."""
    name = str(node.target).replace(".", "_")
    value: object = body
    for part in str(node.target).split("."):
        value = getattr(value, part)
    taken = getattr(module, name, None)
    suffix = 0
    while taken is not None and taken is not value:
        suffix += 1
        taken = getattr(module, f"{name}_{suffix}", None)
    name = f"{name}_{suffix}" if suffix else name
    if taken is None:
        setattr(module, name, value)
    copy = module.graph.get_attr(name)
    copy.meta = dict(node.meta)
    return copy
