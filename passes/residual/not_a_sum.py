# SPDX-License-Identifier: Apache-2.0
"""Say why the residual stream of a graph is not a sum, and which line of the model's source is the reason.

In:    a graph in which sub-blocks were found that no residual sum holds.
Out:   an error that names the last skip connection and what it takes in place of the stream.
Never: decides whether a graph is refused; looks at names, classes or module paths.

Algorithm:
1. weight depth(node) = products with weights on the longest path to it. In `skip + f(skip)` the summand that is
   computed from the other has the larger one.
2. The last skip connection is the last sum before the graph's outputs whose summands differ in depth and that is not
   part of a larger one.
3. Its summand with the smallest depth stands in place of the embedding: the output of a norm, a product that mixes
   streams, a projection.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePath

from torch import fx

from farskip_compile.errors import NotASumError
from farskip_compile.passes.graph import ops, user_calls
from farskip_compile.passes.graph.walk import walk_back
from farskip_compile.passes.residual.sums import Dataflow, depends_on, parts_of_sums, read_dataflow, summands_of


def not_a_sum(graph: fx.Graph) -> NotASumError | None:
    """The error for a stack whose stream is not a sum; None if there is no skip connection in `graph`."""
    flow = read_dataflow(graph)
    below = summands_of(flow)
    depth = _weight_depths(flow)  # 1
    parts = parts_of_sums(flow.nodes, below)
    wanted = set(walk_back(node for node in flow.nodes if node.op == "output"))
    for node in reversed(flow.nodes):
        if node not in wanted or node in parts or len(below[node]) != 2:
            continue
        # 2
        tree = walk_back([node], inputs=below.__getitem__)
        summands = [summand for summand in tree if not below[summand]]
        skip = min(summands, key=depth.__getitem__)  # 3
        if not max(map(depth.__getitem__, summands)) > depth[skip] > 0:
            continue
        # what has a weight of its own and nothing computed from it is one of two branches, as shared experts are
        if not flow.has_weight(skip) or not depends_on(flow, [skip]).isdisjoint(summands):
            return _error(node, skip)
    return None


def _weight_depths(flow: Dataflow) -> dict[fx.Node, int]:
    depth: dict[fx.Node, int] = {}
    for node in flow.nodes:
        depth[node] = max((depth[arg] for arg in flow.uses[node]), default=0) + flow.has_weight(node)
    return depth


def _error(skip_connection: fx.Node, skip: fx.Node) -> NotASumError:
    name = ops.op_name(skip)
    if ops.is_matmul(skip):
        weights = ops.tensor(skip.all_input_nodes[-1])
        mixes = weights is not None and "linear" not in name
        what = "a product that mixes residual streams" if mixes else "a projection"
    elif ops.is_norm(skip):
        what = "a normalised value"
    else:
        what = f"the output of {user_calls.shown(skip)!r}"
    return NotASumError(
        "the residual stream is not the sum of an embedding and what the sub-blocks add: the sum of the last ones (at "
        f"{_short(skip_connection)}) begins with {what}",
        way_out="only streams to which every sub-block just adds can be rewired: take the skip connection before that "
        "step (which is another model), or leave this model as it is",
        where=replace(
            user_calls.where(skip), source=" called at ".join(user_calls.source_lines(skip)[-1:-3:-1]) or None
        ),
    )


def _short(node: fx.Node) -> str:
    line = user_calls.source_line(node)
    return PurePath(line).name if line else user_calls.name_written(node)
