# SPDX-License-Identifier: Apache-2.0
"""vLLM's add and norm in one operator, taken apart before the passes and put together after them.

In:    a graph in which `fused_add_rms_norm(x, residual, weight, ...)` gives the norm of their sum, and the sum.
Out:   `split`: a sum and an `rms_norm` in the place of each; `join`: the operator again wherever a norm reads a sum.
       Under `full`, each layer's first norm reads the sum of another pair than before.
Never: joins a norm with a sum of which the operator would give something else: other dtypes, a broadcast.

The operator adds in float32 and takes the norm of that sum before it is rounded; a norm beside it takes that of the
rounded sum. In float32 both are the same, bit for bit. Where the pair is joined again, so is the rounding.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from farskip_compile.passes.graph import ops
from farskip_compile.passes.graph.walk import fresh_like

FUSED, NORM = "vllm_ir::fused_add_rms_norm", "vllm_ir::rms_norm"


def split(graph: fx.Graph) -> int:
    """Take each fused add and norm apart; returns how many there were."""
    found = [node for node in graph.nodes if ops.op_name(node) == FUSED]
    for node in found:
        x, residual, *rest = node.args
        values: Any = ops.fake(node)
        with graph.inserting_before(node):
            total = graph.call_function(operator.add, (residual, x))
            norm = graph.call_function(torch.ops.vllm_ir.rms_norm.default, (total, *rest), dict(node.kwargs))
        total.meta = {**node.meta, "example_value": fresh_like(values[1])}
        norm.meta = {**node.meta, "example_value": fresh_like(values[0])}
        for user in list(node.users):
            user.replace_all_uses_with((norm, total)[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(node)
    return len(found)


def join(graph: fx.Graph) -> int:
    """Put each norm and the sum that it reads into one operator, one norm for each sum; returns how many."""
    joined = 0
    for norm in [node for node in graph.nodes if ops.op_name(node) == NORM]:
        total = norm.args[0]
        weights = [arg for arg in norm.all_input_nodes if arg is not total]
        if isinstance(total, fx.Node) and _adds(total) and all(map(_is_weight, weights)):
            for weight in weights:
                if weight.op != "placeholder" and weight > total:
                    total.prepend(weight)
            _join(graph, norm, total)
            joined += 1
    return joined


def _adds(total: fx.Node) -> bool:
    """Whether this is a plain sum of two tensors of one shape and dtype."""
    if ops.op_name(total) != "add" or not ops.is_sum(total):
        return False
    first, second, result = (ops.tensor(node) for node in (*total.args, total))  # type: ignore[arg-type]
    if first is None or second is None or result is None:
        return False
    same = ops.same_shape(first, result) and ops.same_shape(second, result)
    return same and first.dtype == second.dtype == result.dtype


def _is_weight(node: fx.Node) -> bool:
    """Whether a node is an input of the graph, or made of some by one operator: it can be made earlier."""
    return node.op == "placeholder" or all(arg.op == "placeholder" for arg in node.all_input_nodes)


def _join(graph: fx.Graph, norm: fx.Node, total: fx.Node) -> None:
    residual, x = total.args
    assert isinstance(residual, fx.Node)
    assert isinstance(x, fx.Node)
    packet = torch.ops.vllm_ir.fused_add_rms_norm
    # it may write over what nothing reads any more
    last = set(x.users) == {total} and set(residual.users) == {total} and _is_made_here(x) and _is_made_here(residual)
    target = packet.maybe_inplace if last else packet.default
    with graph.inserting_before(total):
        fused = graph.call_function(target, (x, residual, *norm.args[1:]), dict(norm.kwargs))
        parts = [graph.call_function(operator.getitem, (fused, index)) for index in (0, 1)]
    for part, old in zip(parts, (norm, total), strict=True):
        part.meta = dict(old.meta)
        old.replace_all_uses_with(part)
    fused.meta = {**norm.meta, "example_value": tuple(part.meta["example_value"] for part in parts)}
    fused.update_arg(0, x)
    fused.update_arg(1, residual)
    graph.erase_node(norm)
    graph.erase_node(total)


def _is_made_here(node: fx.Node) -> bool:
    """Whether its memory is that of a value which is computed in the graph, and of no view of another."""
    return node.op == "call_function" and ops.op_name(node) not in ops.SHAPE_OPS | ops.CAST_OPS | ops.INDEX_OPS
