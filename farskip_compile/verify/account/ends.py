# SPDX-License-Identifier: Apache-2.0
"""Proof that a residual stream begins and ends in this graph, so that the graph is no part of a model.

Contract: pure questions about a graph and what was read off it, given as claims; shares no code with detection. What
cuts a model apart hands the raw stream over, so a part shows at its ends: the stream comes in, or goes out, as it is.

    beginning   a row of a table that integers pick, or a product with weights, makes the base; or the caller declared
                that an input of the call is an embedding
    end         whatever is returned of the finished stream was normed or multiplied by weights before; or the caller
                declared that what is returned is final

Algorithm (linear): a walk forward up to the base, in which each value is proven, open, or neither, as a constant is;
and one forward from the finished stream, along operators that neither norm nor apply weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import dropwhile

from torch import fx

from farskip_compile._compat import is_module_state, same_dim
from farskip_compile.passes.graph import effects, ops
from farskip_compile.passes.graph.declared import declared_end
from farskip_compile.passes.graph.walk import walk_back
from farskip_compile.verify.account.weights import applies_weights, begins_rows, has_weights
from farskip_compile.verify.rows.rules import is_state

JOINS = frozenset(
    [
        *("cat", "concat", "concatenate", "stack", "where", "masked_scatter", "setitem", "copy"),
        *("index_put", "index_copy", "index_add", "scatter", "scatter_add", "scatter_reduce"),
        *("added_alone", "after_write"),
    ]
)
"""Operators that put rows of several values into one, as rows of images among those of tokens."""
REDUCTIONS = frozenset(
    [
        *("mean", "sum", "prod", "var", "std", "var_mean", "std_mean", "logsumexp", "max", "min", "amax", "amin"),
        *("norm", "linalg_norm", "linalg_vector_norm"),
    ]
)


def open_beginning(graph: fx.Graph, bases: Collection[fx.Node]) -> list[fx.Node]:
    """Return the inputs of the call that come in as the raw stream: those that make a base which nothing proves."""
    before = set(walk_back(bases))
    proven: dict[fx.Node, bool | None] = {}
    for node in graph.nodes:
        if node in before:
            proven[node] = _is_proven(node, proven)
    unproven = [base for base in bases if proven[base] is False]
    made_of = walk_back(unproven, lambda node: proven[node] is not False)
    return sorted((node for node in made_of if node.op == "placeholder"), key=list(graph.nodes).index)


def _is_proven(node: fx.Node, proven: dict[fx.Node, bool | None]) -> bool | None:
    """Return whether `node` is made by weights (True), or is what came in (False); None if neither."""
    if node.op == "placeholder":
        came_in = ops.is_floating(node) and not is_module_state(node) and declared_end(node) != "embedding"
        return False if came_in else (None if declared_end(node) is None else True)
    value = ops.fake(node)
    if is_state(node) or not (ops.is_floating(node) or isinstance(value, tuple | list)):
        return None
    if has_weights(node) or begins_rows(node):
        return True
    answers = [proven[arg] for arg in node.all_input_nodes if _makes_rows(arg, node)]
    known = {answer for answer in answers if answer is not None}
    if not known:
        return None
    return any(known) if ops.op_name(node).rstrip("_") in JOINS else all(known)


def _makes_rows(arg: fx.Node, node: fx.Node) -> bool:
    """Return whether `arg` is more than a gate, a mask or a bias of `node`: its last dimension is not broadcast."""
    value, result = ops.tensor(arg), ops.tensor(node)
    if value is None or result is None:
        return True
    alone = sum(ops.is_floating(one) for one in node.all_input_nodes) == 1
    return value.is_floating_point() and (
        alone or (value.dim() > 1 and result.dim() > 0 and same_dim(value.shape[-1], result.shape[-1]))
    )


def open_end(graph: fx.Graph, finished: Iterable[fx.Node]) -> fx.Node | None:
    """Return the value by which the finished stream leaves the graph as it is; None if there is none.

    Args:
        graph: the graph.
        finished: the values that hold the whole sum.
    """
    raw, statistics = set(finished), set[fx.Node]()
    given = {effects.storage(node) for node in graph.nodes if is_state(node) or node.op == "placeholder"}
    for node in dropwhile(lambda node: node not in raw and node.op != "output", graph.nodes):
        inputs = node.all_input_nodes
        if node.op == "output":
            if declared_end(node) == "final":
                return None
            return next((arg for arg in inputs if arg in raw), None)
        if raw.isdisjoint(inputs):
            if not statistics.isdisjoint(inputs):
                statistics.add(node)
            continue
        if any(effects.storage(base) in given for base in effects.mutated_args(node)):
            return node
        if _reduces(node, inputs):
            statistics.add(node)
        elif not applies_weights(node) and not _is_norm(node) and statistics.isdisjoint(inputs):
            raw.add(node)
    return None


def _is_norm(node: fx.Node) -> bool:
    return ops.op_name(node).endswith(("norm", "normalize"))


def _reduces(node: fx.Node, inputs: Sequence[fx.Node]) -> bool:
    """Return whether `node` takes a statistic of its input, such as the mean square of each row."""
    value = ops.tensor(node)
    source = next((one for arg in inputs if (one := ops.tensor(arg)) is not None), None)
    if ops.op_name(node) not in REDUCTIONS:
        return False
    return value is None or source is None or not ops.same_shape(value, source)
