"""Which values of a graph take memory that nothing has used before, so that the system hands it out page by page.

In:    a graph in the order of its nodes.
Out:   bytes of new memory by node: of values of `LARGE` bytes or more; smaller ones come from memory that is kept.
Never: plans memory; a rule of thumb about Inductor's plan and the C library's allocator, for CPUs.

1. A view has no memory; a value that fuses into all of its readers has none either.
2. What a library call makes takes the memory of a value of the same size that is dead by then, if there is one.
3. What a loop makes replaces an operand of the same size that dies with it, if it reads each element once; a loop
   with a reduction in front of it (a softmax) reads twice, and gets new memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch import fx

from farskip_compile._compat import OpOverload
from farskip_compile.costs.fusion import is_fusible, readers
from farskip_compile.costs.memory import is_free, tensor_bytes, tensors_of
from farskip_compile.passes.graph import ops

Size = Callable[[int | torch.SymInt], int]

LARGE = 32 * 2**20
"""glibc maps blocks from this size on anew each time (`M_MMAP_THRESHOLD_MAX`); other allocators are no worse."""


def fresh_bytes(graph: fx.Graph, size: Size) -> dict[fx.Node, int]:
    """Bytes of new memory that nodes take, of those that take any."""
    large = {node: total for node in graph.nodes if (total := _own_bytes(node, size)) >= LARGE}
    if not large:
        return {}
    place = {node: index for index, node in enumerate(graph.nodes)}
    ends = {node: max((place[reader] for reader in readers(node)), default=place[node]) for node in large}
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


def _own_bytes(node: fx.Node, size: Size) -> int:
    """Bytes of the memory that `node` makes; 0 for a view, an input, and what fuses into its readers."""
    if node.op != "call_function" or is_free(node) or ops.is_collective(node) or ops.is_wait(node):
        return 0
    if is_fusible(node) and all(is_fusible(reader) for reader in readers(node)):
        return 0
    if not isinstance(node.target, OpOverload):
        return 0
    return max((tensor_bytes(value, size) for value in tensors_of(ops.fake(node))), default=0)


def _replaced(
    node: fx.Node, large: dict[fx.Node, int], ends: dict[fx.Node, int], place: dict[fx.Node, int]
) -> fx.Node | None:
    """A value of the same size that dies in the loop that makes `node`, if no reduction stands in between."""
    seen, stack = {node}, [node]
    operands: list[fx.Node] = []
    while stack:
        one = stack.pop()
        if _reduces(one):
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


def _reduces(node: fx.Node) -> bool:
    tagged = isinstance(node.target, OpOverload) and torch.Tag.reduction in node.target.tags
    return tagged or "softmax" in ops.op_name(node)
