# SPDX-License-Identifier: Apache-2.0
"""vLLM's all-reduce over shared memory, which CPUs use, as an operator that writes nothing.

In:    a graph in which `_C::shm_allreduce(handle, data!)` sums over the ranks in place: what was there is gone, so no
       pass can take a sum apart that it reduces.
Out:   `write_out`: `farskip::shm_all_reduce(data, handle)` in its place, which returns the sum; it is declared as a
       reduction, as `vllm::all_reduce` is.
Never: touches one whose memory is read later under another name.
"""

from __future__ import annotations

import torch
from torch import fx

from farskip_compile.passes.graph import effects, ops
from farskip_compile.passes.graph.walk import fresh_like
from farskip_compile.records.announcement import LIBRARY

IN_PLACE, OUT_OF_PLACE = "_C::shm_allreduce", "farskip::shm_all_reduce"

LIBRARY.define("shm_all_reduce(Tensor data, int handle) -> Tensor")


def _all_reduce(data: torch.Tensor, handle: int) -> torch.Tensor:
    total = data.clone(memory_format=torch.contiguous_format)
    torch.ops._C.shm_allreduce(handle, total)
    return total


LIBRARY.impl("shm_all_reduce", _all_reduce, "CPU")
torch.library.register_fake(OUT_OF_PLACE, lambda data, handle: torch.empty_like(data), lib=LIBRARY)


def write_out(graph: fx.Graph) -> int:
    """See the module's contract; returns how many it replaced."""
    found = [node for node in graph.nodes if ops.op_name(node) == IN_PLACE]
    if not found:
        return 0
    order = {node: place for place, node in enumerate(graph.nodes)}
    names: dict[int | None, list[fx.Node]] = {}
    for node in order:
        names.setdefault(effects.storage(node), []).append(node)
    replaced = 0
    for node in found:
        handle, data = node.args
        assert isinstance(data, fx.Node)
        before = (name for name in names[effects.storage(data)] if order[name] < order[node] and name is not data)
        if any(order.get(user, -1) > order[node] for name in before for user in name.users):
            continue
        with graph.inserting_before(node):
            total = graph.call_function(torch.ops.farskip.shm_all_reduce.default, (data, handle))
        total.meta = {**node.meta, "example_value": fresh_like(data.meta["example_value"])}
        for user in list(data.users):
            if order.get(user, -1) > order[node]:
                user.replace_input_with(data, total)
        graph.erase_node(node)
        replaced += 1
    return replaced
