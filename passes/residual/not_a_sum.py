"""Say why the residual stream of a graph is no sum, and which line of the model's source stands in the way.

In:    a graph in which sub-blocks were found that no residual sum holds.
Out:   a sentence and a node: the last skip connection, and what it takes in place of the stream.
Never: decides whether a graph is refused; looks at names, classes or module paths.

Algorithm:
1. weight depth(node) = products with weights on the longest path to it. In `skip + f(skip)` the summand that is
   computed from the other has the larger one.
2. The last sum in front of the graph's outputs whose summands differ by that, and that is no part of a larger one,
   ends in the last skip connection.
3. Its summand with the smallest depth is what stands in the place of the embedding: the output of a norm, a product
   that mixes streams, a projection.
"""

from __future__ import annotations

from pathlib import PurePath

from torch import fx

from farskip_compile.errors import NotASumError, Where
from farskip_compile.passes.graph import ops
from farskip_compile.passes.residual.sums import Summands, depends_on, operands, read_dataflow


def not_a_sum(graph: fx.Graph) -> NotASumError | None:
    """The error for a stack whose stream is no sum; None if there is no skip connection in `graph`."""
    flow = read_dataflow(graph)
    below = {node: operands(node, flow) for node in flow.nodes}
    depth: dict[fx.Node, int] = {}
    for node in flow.nodes:
        has_weight = ops.multiplies(node) and any(arg in flow.constant for arg in flow.uses[node])
        depth[node] = max((depth[arg] for arg in flow.uses[node]), default=0) + has_weight
    wanted = _behind_the_outputs(graph)
    inner: set[fx.Node] = set()
    for node in reversed(flow.nodes):
        if node in inner or len(below[node]) == 2:
            inner.update(below[node])
        if node not in wanted or node in inner or len(below[node]) != 2:
            continue
        summands = _summands(node, below)
        skip = min(summands, key=depth.__getitem__)
        if not max(map(depth.__getitem__, summands)) > depth[skip] > 0:
            continue
        # what has a weight of its own and nothing computed from it is one of two branches, as shared experts are
        has_weight = any(arg in flow.constant for arg in flow.uses[skip]) and ops.multiplies(skip)
        if not has_weight or not depends_on(flow, [skip]).isdisjoint(summands):
            return _error(node, skip)
    return None


def _summands(node: fx.Node, below: Summands) -> list[fx.Node]:
    """What the whole sum under `node` is made of, below linear ops."""
    found: dict[fx.Node, None] = {}
    seen = {node}
    stack = [node]
    while stack:
        current = stack.pop()
        if not below[current]:
            found[current] = None
        for arg in below[current]:
            if arg not in seen:
                seen.add(arg)
                stack.append(arg)
    return list(found)


def _behind_the_outputs(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that an output depends on."""
    stack = [node for node in graph.nodes if node.op == "output"]
    seen = set(stack)
    while stack:
        for arg in stack.pop().all_input_nodes:
            if arg not in seen:
                seen.add(arg)
                stack.append(arg)
    return seen


def _error(skip_connection: fx.Node, skip: fx.Node) -> NotASumError:
    name = ops.op_name(skip)
    if ops.is_matmul(skip):
        weights = ops.tensor(skip.all_input_nodes[-1])
        mixes = weights is not None and "linear" not in name
        what = "a product that mixes residual streams" if mixes else "a projection"
    elif ops.is_norm(skip):
        what = "a normalised value"
    else:
        what = f"the output of {name!r}"
    return NotASumError(
        "the residual stream is not the sum of an embedding and what the sub-blocks add: the sum of the last ones (at "
        f"{_short(skip_connection)}) begins with {what}",
        way_out="only streams to which every sub-block just adds can be rewired: take the skip connection before that "
        "step (which is another model), or leave this model as it is",
        where=Where(node=skip.name, source=" called at ".join(ops.source_lines(skip)[-1:-3:-1]) or None),
    )


def _short(node: fx.Node) -> str:
    line = ops.source_line(node)
    return PurePath(line).name if line else node.name
