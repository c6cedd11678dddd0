# SPDX-License-Identifier: Apache-2.0
"""Fourth pass, on request: reduce the partial sums of the attention and of what is added behind it together.

In:    a graph rewired under tensor parallelism, to `full`: (x + C(a)) + (C(r) + C(s)) and (x + C(a)) + C(s);
       or to `mlp`: (x + C(a)) + C(m), where m is all that a dense layer or the experts add.
Out:   (x + C(a + s)) + C(r) and x + C(a + s): one all-reduce fewer per MoE layer, and C(a + s) is ready early;
       or x + C(a + m): one all-reduce for the layer.
Never: merges where the stream between the two reductions is read (then there is nothing to gain), or reductions over
       different groups. Equal in real arithmetic, not bit for bit (arXiv 2511.11505; farskip_spec 1.9).

Algorithm under `mlp`, for each residual value x + C(a) that only the next one reads: build C(a + m) where the later of
the two was launched, and add it to x.
Under `full`, for each residual value n = v + C(s) beside the main chain, where v = x + C(a) is read only by n and the
chain:
1. Match n, v and the chain's sum (`_Pair`).
2. Build C(a + s). It is launched where the later of the two was: a process group runs its launches in their order, and
   after C(r) the next attention would wait for both.
3. Build both sums anew, right before the chain's sum; so are the waits.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from math import prod

import torch
from torch import fx

from farskip_compile.passes.graph import comms, ops
from farskip_compile.passes.graph.dead import erase_dead, used_nodes
from farskip_compile.passes.graph.walk import fresh_like
from farskip_compile.passes.residual.stack import read_stack
from farskip_compile.passes.residual.stream import Stream
from farskip_compile.passes.rewire.request import Connectivity


def merge_reductions(module: fx.GraphModule, connectivity: Connectivity) -> int:
    """Merge what can be merged in `module`, in place; returns how many pairs of reductions became one."""
    graph = module.graph
    stack = read_stack(graph)
    assert stack is not None
    stream = stack.stream
    used_before = used_nodes(graph)
    renamed: dict[fx.Node, fx.Node] = {}
    if connectivity == "mlp":
        for main in sorted(stream.values, key=stream.order.__getitem__):
            layer = _match_layer(stream, main)
            if layer is not None:
                _merge_layer(graph, renamed, layer)
        if renamed:
            erase_dead(graph, used_before)
        return len(renamed)
    for side in [value for value in stream.side_sums if stream.is_residual(value)]:
        pair = _match(stream, side)  # 1
        if pair is not None:
            _merge(graph, renamed, pair)
    if renamed:
        erase_dead(graph, used_before)
    return len(renamed)


@dataclass(frozen=True)
class _Pair:
    """What `side` and the main sum are made of, where they can be merged."""

    side: fx.Node
    """(x + C(a)) + C(s)"""
    before: fx.Node
    """x"""
    attention: fx.Node
    """C(a), as it is added."""
    shared: fx.Node
    """C(s), as it is added to x + C(a)."""
    routed: fx.Node
    """C(r), as it is added to C(s)."""
    both: fx.Node
    """C(r) + C(s)"""
    added: fx.Node
    """The same as it is added to x + C(a): perhaps in another shape."""
    main: fx.Node
    """The main sum."""


@dataclass(frozen=True)
class _Layer:
    """What `main` is made of: (x + C(a)) + C(m)."""

    before: fx.Node
    """x"""
    attention: fx.Node
    """C(a), as it is added."""
    rest: fx.Node
    """C(m), as it is added."""
    main: fx.Node


def _match_layer(stream: Stream, main: fx.Node) -> _Layer | None:
    """The parts if `main` is (x + C(a)) + C(m), and nothing else reads x + C(a)."""
    if not _adds(main):
        return None
    for early, rest in (stream.below[main], stream.below[main][::-1]):
        if not stream.is_residual(early) or not _adds(early) or set(early.users) != {main}:
            continue
        for before, attention in (stream.below[early], stream.below[early][::-1]):
            if stream.is_residual(before) and _same_reduction(attention, rest):
                return _Layer(before, attention, rest, main)
    return None


def _adds(node: fx.Node) -> bool:
    return ops.is_sum(node) and ops.op_name(node) == "add"


def _match(stream: Stream, side: fx.Node) -> _Pair | None:
    """The parts if `side` is (x + C(a)) + C(s) and the main sum (x + C(a)) + (C(r) + C(s))."""
    if not _adds(side):
        return None
    orders = (stream.below[side], stream.below[side][::-1])
    pairs = (_match_in_order(stream, side, early, shared) for early, shared in orders)
    return next((pair for pair in pairs if pair is not None), None)


def _match_in_order(stream: Stream, side: fx.Node, early: fx.Node, shared: fx.Node) -> _Pair | None:
    """The parts if `early` is x + C(a) and `shared` is C(s)."""
    main = stream.parents.get(early)
    if main is None or not stream.is_residual(early) or not ops.is_sum(early) or set(early.users) != {main, side}:
        return None
    added = _other_summand(stream, main, early)
    if added is None:
        return None
    both, alone = _inside(added, main)
    kept, _ = _inside(shared, side)
    routed = _other_summand(stream, both, kept) if alone and ops.is_sum(both) and kept in stream.below[both] else None
    if routed is None:
        return None
    for before, attention in (stream.below[early], stream.below[early][::-1]):
        if stream.is_residual(before) and _same_reduction(attention, shared):
            return _Pair(side, before, attention, shared, routed, both, added, main)
    return None


def _other_summand(stream: Stream, total: fx.Node, summand: fx.Node) -> fx.Node | None:
    return next((arg for arg in stream.below[total] if arg is not summand), None)


def _inside(node: fx.Node, user: fx.Node) -> tuple[fx.Node, bool]:
    """(`node` before the changes of its shape, whether only these and `user` read it)."""
    alone = set(node.users) == {user}
    while ops.op_name(node) in ops.SHAPE_OPS and isinstance(node.args[0], fx.Node):
        node, user = node.args[0], node
        alone = alone and set(node.users) == {user}
    return node, alone


def _same_reduction(left: fx.Node, right: fx.Node) -> bool:
    """Both are the wait of the same reduction over the same group, of partial sums that can be added."""
    one, other = _launch(left), _launch(right)
    if one is None or other is None or one.target != other.target or one.args[1:] != other.args[1:]:
        return False
    shapes = _shape(one), _shape(other)
    known = all(isinstance(size, int) for shape in shapes for size in shape)
    return shapes[0] == shapes[1] or (known and prod(shapes[0]) == prod(shapes[1]))


def _shape(launch: fx.Node) -> tuple[int | torch.SymInt, ...]:
    """The shape of what `launch` reduces."""
    partial = ops.tensor(launch.args[0])  # type: ignore[arg-type]
    return () if partial is None else tuple(partial.shape)


def _launch(node: fx.Node) -> fx.Node | None:
    """The linear collective that `node` waits for, if nothing else comes between."""
    while comms.is_wait(node) or ops.op_name(node) in ops.SHAPE_OPS or ops.op_name(node) in ops.CAST_OPS:
        node = node.args[0]  # type: ignore[assignment]
    return node if comms.is_linear_collective(node) else None


def _merge_layer(graph: fx.Graph, renamed: dict[fx.Node, fx.Node], layer: _Layer) -> None:
    reduced, steps = _launched_together(graph, layer.attention, layer.rest)
    with graph.inserting_before(layer.main):
        for step in steps:
            reduced = _copy(graph, step, reduced)
        total = _add(graph, renamed.get(layer.before, layer.before), reduced, like=layer.main)
    layer.main.replace_all_uses_with(total)
    graph.erase_node(layer.main)
    renamed[layer.main] = total


def _launched_together(graph: fx.Graph, one: fx.Node, other: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """One launch for both, where the later one was, and what followed that of `other`."""
    first, second = _launch(one), _launch(other)
    assert first is not None
    assert second is not None
    with graph.inserting_before(max(first, second)):  # 2
        partial = _add(graph, _reshaped(graph, first, _shape(second)), second.args[0], like=second)  # type: ignore[arg-type]
        launched, *steps = _path(second, other)
        return _copy(graph, launched, partial), steps


def _merge(graph: fx.Graph, renamed: dict[fx.Node, fx.Node], pair: _Pair) -> None:
    reduced, steps = _launched_together(graph, pair.attention, pair.shared)
    with graph.inserting_before(pair.main):  # 3
        for step in steps:
            reduced = _copy(graph, step, reduced)
        early = _add(graph, renamed.get(pair.before, pair.before), reduced, like=pair.side)
        routed = pair.routed
        for step in _path(pair.both, pair.added)[1:]:
            routed = _copy(graph, step, routed)
        late = _add(graph, early, routed, like=pair.main)
    pair.side.replace_all_uses_with(early)
    pair.main.replace_all_uses_with(late)
    for node in (pair.side, pair.main):
        graph.erase_node(node)
    renamed[pair.main] = late


def _reshaped(graph: fx.Graph, launch: fx.Node, shape: tuple[int | torch.SymInt, ...]) -> fx.Node:
    """What `launch` reduces, in this shape."""
    partial = launch.args[0]
    assert isinstance(partial, fx.Node)
    if _shape(launch) == shape:
        return partial
    node = graph.call_function(torch.reshape, (partial, shape))
    node.meta = dict(partial.meta)
    node.meta["example_value"] = ops.tensor(partial).reshape(shape)  # type: ignore[union-attr]
    return node


def _path(first: fx.Node, last: fx.Node) -> list[fx.Node]:
    """The nodes from `first` to `last`, each the first argument of the next one."""
    found = [last]
    while found[-1] is not first:
        found.append(found[-1].args[0])  # type: ignore[arg-type]
    return found[::-1]


def _copy(graph: fx.Graph, step: fx.Node, value: fx.Node) -> fx.Node:
    """`step`, with `value` in place of its first argument."""
    old = step.args[0]
    copy = graph.node_copy(step, lambda arg: value if arg is old else arg)
    copy.meta["example_value"] = fresh_like(ops.tensor(step))  # type: ignore[arg-type]
    return copy


def _add(graph: fx.Graph, left: fx.Node, right: fx.Node, like: fx.Node) -> fx.Node:
    total = graph.call_function(operator.add, (left, right))
    total.meta = dict(like.meta)
    total.meta["example_value"] = fresh_like(ops.tensor(left))  # type: ignore[arg-type]
    return total
