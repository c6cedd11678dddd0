"""Fourth pass, on request: reduce the attention's and the shared experts' partial sums together.

In:    a graph rewired to `full` under tensor parallelism: (x + C(a)) + (C(r) + C(s)) and (x + C(a)) + C(s).
Out:   (x + C(a + s)) + C(r) and x + C(a + s): one all-reduce fewer per MoE layer, and C(a + s) is ready early.
Never: merges where the stream between the two reductions is read (then there is nothing to gain), or reductions over
       different groups. Equal in real arithmetic, not bit for bit (arXiv 2511.11505; farskip_spec 1.9).

Algorithm: for each residual value n = v + C(s) beside the main chain, with v = x + C(a) read by nobody else than n and
the chain: build C(a + s) and both sums anew. It is launched where the later of the two was: a process group runs its
launches in their order, and behind C(r) the next attention would wait for both. Waits and sums stand in front of the
chain's sum.
"""

from __future__ import annotations

import operator

from torch import fx

from farskip_compile.passes import ops
from farskip_compile.passes.rewire import erase_dead, used_nodes
from farskip_compile.passes.single_assignment import fresh_like
from farskip_compile.passes.stack import read_stack
from farskip_compile.passes.stream import Stream


def merge_reductions(module: fx.GraphModule) -> int:
    """Merge what can be merged in `module`, in place; returns how many pairs of reductions became one."""
    graph = module.graph
    stack = read_stack(graph)
    assert stack is not None
    stream = stack.stream
    used_before = used_nodes(graph)
    renamed: dict[fx.Node, fx.Node] = {}
    for side in [value for value in stream.values if value not in stream.tree]:
        found = _match(stream, side)
        if found is not None:
            _merge(graph, renamed, side, *found)
    if renamed:
        erase_dead(graph, used_before)
        graph.lint()
    return len(renamed)


def _match(stream: Stream, side: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node, fx.Node, fx.Node] | None:
    """(x, C(a), C(s), C(r), main sum) if `side` is (x + C(a)) + C(s) and the main sum (x + C(a)) + (C(r) + C(s))."""
    if not ops.is_sum(side) or ops.op_name(side) != "add":
        return None
    for early, shared in (stream.below[side], stream.below[side][::-1]):
        main = stream.parents.get(early)
        if main is None or early not in stream.values or not ops.is_sum(early) or set(early.users) != {main, side}:
            continue
        both = next((arg for arg in stream.below[main] if arg is not early), None)
        if both is None or not ops.is_sum(both) or shared not in stream.below[both] or set(both.users) != {main}:
            continue
        routed = next(arg for arg in stream.below[both] if arg is not shared)
        for before, attention in (stream.below[early], stream.below[early][::-1]):
            if before in stream.values and _same_reduction(attention, shared):
                return before, attention, shared, routed, main
    return None


def _same_reduction(left: fx.Node, right: fx.Node) -> bool:
    """Both are the wait of the same reduction over the same group."""
    pair = [_launch(left), _launch(right)]
    if pair[0] is None or pair[1] is None:
        return False
    return pair[0].target == pair[1].target and pair[0].args[1:] == pair[1].args[1:]


def _launch(node: fx.Node) -> fx.Node | None:
    """The linear collective that `node` waits for, if nothing else stands between."""
    while ops.is_wait(node) or ops.op_name(node) in ops.SHAPE_OPS or ops.op_name(node) in ops.CAST_OPS:
        node = node.args[0]  # type: ignore[assignment]
    return node if ops.is_linear_collective(node) else None


def _merge(
    graph: fx.Graph,
    renamed: dict[fx.Node, fx.Node],
    side: fx.Node,
    value: fx.Node,
    attention: fx.Node,
    shared: fx.Node,
    routed: fx.Node,
    main: fx.Node,
) -> None:
    launch_a, launch_s = _launch(attention), _launch(shared)
    assert launch_a is not None
    assert launch_s is not None
    with graph.inserting_before(max(launch_a, launch_s)):
        partial = _add(graph, launch_a.args[0], launch_s.args[0], like=launch_a)  # type: ignore[arg-type]
        launched, *steps = _steps(shared)
        reduced = _copy(graph, launched, partial)
    with graph.inserting_before(main):
        for step in steps:
            reduced = _copy(graph, step, reduced)
        early = _add(graph, renamed.get(value, value), reduced, like=side)
        late = _add(graph, early, routed, like=main)
    side.replace_all_uses_with(early)
    main.replace_all_uses_with(late)
    for node in (side, main):
        graph.erase_node(node)
    renamed[main] = late


def _steps(node: fx.Node) -> list[fx.Node]:
    """From the launch of a reduction to `node`."""
    steps = [node]
    while not ops.is_linear_collective(steps[-1]) or ops.is_wait(steps[-1]):
        steps.append(steps[-1].args[0])  # type: ignore[arg-type]
    return steps[::-1]


def _copy(graph: fx.Graph, step: fx.Node, value: fx.Node) -> fx.Node:
    """`step`, of `value` in place of its first argument."""
    old = step.args[0]
    copy = graph.node_copy(step, lambda arg: value if arg is old else arg)
    copy.meta["example_value"] = fresh_like(ops.tensor(step))  # type: ignore[arg-type]
    return copy


def _add(graph: fx.Graph, left: fx.Node, right: fx.Node, like: fx.Node) -> fx.Node:
    total = graph.call_function(operator.add, (left, right))
    total.meta = dict(like.meta)
    total.meta["example_value"] = fresh_like(ops.tensor(left))  # type: ignore[arg-type]
    return total
