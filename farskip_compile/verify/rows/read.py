# SPDX-License-Identifier: Apache-2.0
"""Which rows of the residual stream each value of a graph depends on.

Contract: `read_rows` gives a `RowFacts` for each node of a normalised graph. It is told where rows begin: at the
residual values, and anew at each; how they were found, and what a sub-block was taken for, it does not ask. It may know
less than is true, never more.

Algorithm (linear): one walk in the order of the graph. Each operator has a rule (`row_rules`), which gives the result's
`RowFacts` from those of its arguments; a higher-order operator does what the graph inside it does. What reads memory
after a write is given what was written; but what is made of the mark of a write (`after_write`) is up to date by
itself, until the next write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from torch import fx

from farskip_compile._compat import same_dim
from farskip_compile.passes.graph import effects, ops
from farskip_compile.passes.graph.walk import bodies
from farskip_compile.verify.rows import layout as layouts
from farskip_compile.verify.rows.no_rule import mixes, unknown
from farskip_compile.verify.rows.rules import apply
from farskip_compile.verify.rows.state import DECISION, FREE, FactsOf, RowDependence, RowFacts, merged, worst

NOTHING: Set[fx.Node] = frozenset()
Current = Mapping[int | None, Set[fx.Node]]
"""For each memory, the values in it that were made of the mark of its last write."""


def begin(nodes: Iterable[fx.Node], indices: int | None = None) -> dict[fx.Node, RowFacts]:
    """Rows that begin at `nodes`: every dimension but the last is an index of them, or only the first `indices`."""
    return {
        node: RowFacts(RowDependence.ROWS, layouts.of_stream(value.shape, indices))
        for node in nodes
        if (value := ops.tensor(node)) is not None
    }


Again = Callable[[fx.Node, RowFacts], RowFacts]
"""A function that returns the facts to go on with for a node, given those that its rule found."""


def read_rows(
    nodes: Iterable[fx.Node], begins: Mapping[fx.Node, RowFacts], again: Again | None = None
) -> dict[fx.Node, RowFacts]:
    """`RowFacts` for each of `nodes`, which are in the order of their graph; those of `begins` are what is said there.

    Args:
        nodes: all that are to be read, and what they are given.
        begins: where rows begin.
        again: where they may begin once more, behind what has mixed them.
    """
    nodes = list(nodes)
    writes = effects.writers(nodes)
    known: dict[fx.Node, RowFacts] = {}
    written: dict[int, Written] = {}
    current: dict[int | None, set[fx.Node]] = {}

    def given(arg: object) -> RowFacts:
        if not written and isinstance(arg, fx.Node):
            return known[arg]
        return _read(arg, known, written, current)

    for node in nodes:
        name = ops.op_name(node)
        if node in begins:
            known[node] = begins[node]
        elif name.startswith("higher_order::"):
            known[node] = _inside(node, given)
        else:
            found = apply(node, given)
            known[node] = found if again is None else again(node, found)
        if name == "after_write":
            current[effects.storage(node)] = {node}
        elif current:
            _inherit(node, current)
        for base in writes.get(node, ()):
            memory = effects.storage(base)
            current.pop(memory, None)
            if memory is not None:
                before = written.get(memory)
                after = Written(known[node], base)
                written[memory] = (
                    after if before is None else Written(merged([known[node], before.seen_by(base)], node), base)
                )
    return known


def _inherit(node: fx.Node, current: Mapping[int | None, set[fx.Node]]) -> None:
    """Enter `node` in `current` if it is a view of an entry, or a tuple of views such as a `chunk`, which has no memory
    of its own."""
    memory = effects.storage(node)
    memories = map(effects.storage, node.all_input_nodes) if isinstance(ops.fake(node), tuple | list) else (memory,)
    for one in memories:
        if one in current and not current[one].isdisjoint(node.all_input_nodes):
            current[one].add(node)


@dataclass(frozen=True)
class Written:
    """What was written to a memory."""

    rows: RowFacts
    through: fx.Node
    """A value in it: other views of it have their rows elsewhere."""

    def seen_by(self, node: fx.Node) -> RowFacts:
        """What another value in this memory has of it."""
        if self.rows.state is RowDependence.FREE or same_view(self.through, node):
            return self.rows._replace(parts=())
        if self.rows.state is RowDependence.DECISION:
            return DECISION
        if self.rows.state is RowDependence.ROWS:
            return RowFacts(RowDependence.MOVED, decided=self.rows.decided, at=self.through)
        return self.rows._replace(layout=(), parts=())


def same_view(a: fx.Node, b: fx.Node) -> bool:
    """Whether two values of one memory are the same part of it, in the same shape."""
    left, right = ops.tensor(a), ops.tensor(b)
    if left is None or right is None or not ops.same_shape(left, right):
        return False
    return same_dim(left.storage_offset(), right.storage_offset()) and all(map(same_dim, left.stride(), right.stride()))


def _read(arg: object, known: Mapping[fx.Node, RowFacts], written: Mapping[int, Written], current: Current) -> RowFacts:
    """What an argument holds: a node, or a list of nodes."""
    if isinstance(arg, fx.Node):
        rows = known[arg]
        memory = effects.storage(arg) if written else None
        after = written.get(memory) if memory is not None and arg not in current.get(memory, NOTHING) else None
        return rows if after is None else merged([rows, after.seen_by(arg)], arg)
    if isinstance(arg, tuple | list):
        return merged([_read(part, known, written, current) for part in arg])
    return FREE


# Higher-order operators

RUN_ONCE = frozenset(
    [
        "autograd_function_apply",
        "cond",
        "dynamo_bypassing_wrapper",
        "hints_wrapper",
        "invoke_subgraph",
        "strict_mode",
        "tag_activation_checkpoint",
        "wrap",
        "wrap_activation_checkpoint",
        "wrap_with_autocast",
        "wrap_with_set_grad_enabled",
    ]
)
"""They run a graph on their operands as these are; a scan or a loop runs it on parts of them, or on its own results."""


def _inside(node: fx.Node, given: FactsOf) -> RowFacts:
    """What the graph inside a higher-order operator does; of several graphs, the worst."""
    if all(given(arg).state is RowDependence.FREE for arg in node.all_input_nodes):
        return FREE
    if ops.is_attention(node):
        return mixes(node, given)
    if ops.op_name(node).removeprefix("higher_order::") not in RUN_ONCE:
        return unknown(node, given)
    parts = _results(node, given)
    if not parts:
        return unknown(node, given)
    if isinstance(ops.fake(node), torch.Tensor):
        return parts[0]
    return worst(parts)._replace(parts=parts)


def _results(node: fx.Node, given: FactsOf) -> tuple[RowFacts, ...]:
    """What is known of each result of the graphs inside `node`; nothing if it can't be told."""
    operands = [arg for arg in _flat(node.args) if isinstance(arg, fx.Node) and not _is_body(arg)]
    found: list[tuple[RowFacts, ...]] = []
    for body in _forward_bodies(node):
        inputs = [one for one in body.graph.nodes if one.op == "placeholder"]
        if len(operands) < len(inputs):
            return ()
        taken = operands[len(operands) - len(inputs) :]
        known = read_rows(body.graph.nodes, dict(zip(inputs, map(given, taken), strict=True)))
        results = _flat(next(iter(reversed(body.graph.nodes))).args)
        found.append(tuple(known[one] if isinstance(one, fx.Node) else FREE for one in results))
    if not found or any(len(one) != len(found[0]) for one in found):
        return ()
    if len(found) > 1 and given(operands[0]).state is not RowDependence.FREE:
        return ()  # all rows take one of several ways, which rows decide
    return tuple(merged(several) for several in zip(*found, strict=True))


def _flat(args: object) -> list[object]:
    return [one for part in args for one in _flat(part)] if isinstance(args, tuple | list) else [args]


def _is_body(arg: fx.Node) -> bool:
    return arg.op == "get_attr" and ops.tensor(arg) is None


def _forward_bodies(node: fx.Node) -> Sequence[fx.GraphModule]:
    """The second graph of an `autograd.Function` computes gradients."""
    found = bodies(node)
    return found[:1] if "autograd_function" in ops.op_name(node) else found
