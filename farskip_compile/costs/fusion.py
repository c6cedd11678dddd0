# SPDX-License-Identifier: Apache-2.0
"""The bytes that remain once Inductor has fused pointwise operators and reductions, and the new memory.

In:    a node of an ATen graph; for new memory, the graph in the order of its nodes.
Out:   bytes that the node still reads and writes; bytes of new memory by node.
Never: looks further than a node's inputs and readers, or plans memory: these are rules of thumb about Inductor and the
       C library's allocator, for a graph that is not lowered yet.

Traffic: a fusible operator takes the result of another fusible operator from registers, so it reads nothing from it. It
writes nothing unless something else reads its result: a matrix product, a collective, the end of the graph. Views in
between do not count.

New memory, which the system hands out page by page (on CPUs), is that of values of `LARGE` bytes or more:
1. A view has no memory; a value that fuses into all of its readers has none either.
2. The result of a library call takes the memory of a value of the same size that is dead by then, if there is one.
3. The result of a loop replaces an operand of the same size that dies in the loop, if the loop reads each element once;
   a loop that follows a reduction (a softmax) reads twice, and gets new memory.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator

import torch
from torch import fx

from farskip_compile._compat import OpOverload
from farskip_compile.costs.memory import LOOKUPS, SizeHint, is_free, node_bytes, tensor_bytes, tensors_of, traffic
from farskip_compile.passes.graph import comms, ops

FUSIBLE = LOOKUPS | frozenset([
    "_softmax", "_to_copy", "arange", "cat", "constant_pad_nd", "full", "iota", "rand", "randn", "scalar_tensor",
    "select_scatter", "slice_scatter", "inductor_lookup_seed", "inductor_random",
])  # fmt: skip
"""Operators that Inductor lowers to loops although torch does not tag them so."""
LARGE = 32 * 2**20
"""Bytes from which glibc maps blocks anew each time (`M_MMAP_THRESHOLD_MAX`); other allocators do no worse."""


def tagged(node: fx.Node, *tags: torch.Tag) -> bool:
    """Return whether torch tags the operator of `node` with one of `tags`."""
    return isinstance(node.target, OpOverload) and not set(tags).isdisjoint(node.target.tags)


def is_fusible(node: fx.Node) -> bool:
    """Return whether Inductor lowers `node` to a loop that may fuse with others."""
    return isinstance(node.target, OpOverload) and _is_fusible(node.target, ops.op_name(node))


@functools.lru_cache(maxsize=4096)
def _is_fusible(target: OpOverload, name: str) -> bool:
    return torch.Tag.pointwise in target.tags or torch.Tag.reduction in target.tags or name in FUSIBLE


def fused_traffic(node: fx.Node, size: SizeHint) -> tuple[int, int]:
    """Return the bytes that `node` still (reads, writes) after fusion; without fusion as they are."""
    read, written = traffic(node, size)
    if not is_fusible(node):
        return read, written
    table = node.args[0] if ops.op_name(node) in LOOKUPS else None
    saved = sum(
        node_bytes(source, size)
        for source in node.all_input_nodes
        if source is not table and is_fusible(_through_views(source))
    )
    return max(read - saved, 0), 0 if all(is_fusible(reader) for reader in readers(node)) else written


def _through_views(node: fx.Node) -> fx.Node:
    while node.op == "call_function" and is_free(node) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def readers(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the nodes that read the memory of `node`, through views."""
    for user in node.users:
        if user.op == "call_function" and is_free(user):
            yield from readers(user)
        else:
            yield user


def fresh_bytes(graph: fx.Graph, size: SizeHint) -> dict[fx.Node, int]:
    """Return the bytes of new memory by node, for the nodes that take any."""
    large = {node: total for node in graph.nodes if (total := _own_bytes(node, size)) >= LARGE}
    if not large:
        return {}
    place = {node: index for index, node in enumerate(graph.nodes)}
    ends = {}
    for node in large:
        ends[node] = max((place[reader] for reader in readers(node)), default=place[node])
    dead: Counter[int] = Counter()
    found: dict[fx.Node, int] = {}
    replaced: set[fx.Node] = set()
    pending = sorted(large, key=lambda node: ends[node])
    for node in large:
        while pending and ends[pending[0]] < place[node]:
            dead[large[pending[0]]] += pending[0] not in replaced
            pending.pop(0)
        total = large[node]
        if is_fusible(node):
            operand = _replaced(node, large, ends, place)
            if operand is None:
                found[node] = total
            else:
                replaced.add(operand)
        elif dead[total]:
            dead[total] -= 1
        else:
            found[node] = total
    return found


def _own_bytes(node: fx.Node, size: SizeHint) -> int:
    """Return the bytes of the memory of `node`; 0 for a view, an input, and a value that fuses into its readers."""
    if node.op != "call_function" or is_free(node) or comms.is_collective(node) or comms.is_wait(node):
        return 0
    if not isinstance(node.target, OpOverload) or (is_fusible(node) and all(map(is_fusible, readers(node)))):
        return 0
    return max((tensor_bytes(value, size) for value in tensors_of(ops.fake(node))), default=0)


def _replaced(
    node: fx.Node, large: dict[fx.Node, int], ends: dict[fx.Node, int], place: dict[fx.Node, int]
) -> fx.Node | None:
    """Return a value of the same size that dies in the loop of `node`, if no reduction stands in between."""
    seen, stack = {node}, [node]
    operands: list[fx.Node] = []
    while stack:
        one = stack.pop()
        if tagged(one, torch.Tag.reduction) or "softmax" in ops.op_name(one):
            return None
        for source in one.all_input_nodes:
            if source in seen:
                continue
            seen.add(source)
            if source in large:
                operands.append(source)
            elif source.op == "call_function" and (is_free(source) or is_fusible(source)):
                stack.append(source)
    return next((one for one in operands if large[one] == large[node] and ends[one] <= place[node]), None)
