# SPDX-License-Identifier: Apache-2.0
"""Post-grad, on a device: the numbers that the host reads come in one copy, which is launched and waited for.

In:    an ATen graph before it is scheduled, such as that of experts without drops, whose counts decide sizes.
Out:   the same graph; where numbers of one tensor are read, it goes to the host once (`farskip::to_host`), and they are
       read there after `farskip::on_host`. The two are a launch and a wait like those of a collective, so that what the
       device is to do meanwhile is put between them. How many copies there are.
Never: changes a number; copies a tensor of more than `MOST` numbers, of a size that is not known, or that is written
       to.

The host reads by waiting until the device has done all that it was given, and the device then waits for the host. A
tensor whose n numbers are read one by one is waited for n times.

Algorithm:
1. For each read, walk up the views to the tensor whose memory they are in; its place there is the offset of the view.
2. Copy each such tensor right after it is made.
3. Wait for the copy before the first read of it, and let each read take its place in the copy.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from farskip_compile._compat import OpOverload
from farskip_compile._compat.fakes import FakeTensor, fake_tensor
from farskip_compile._compat.marks import COMMUNICATES
from farskip_compile.passes.graph import effects, ops

MOST = 4096
READ = torch.ops.aten._local_scalar_dense.default
ON_HOST = torch.device("cpu")


def read_on_host(graph: fx.Graph) -> int:
    """See the module's contract."""
    reads: dict[fx.Node, dict[fx.Node, int]] = {}
    written = {effects.storage(arg) for node in graph.nodes for arg in effects.mutated_args(node)}
    for read in graph.find_nodes(op="call_function", target=READ):
        base = _base(read.args[0])  # 1
        if base is None or effects.storage(base) in written:
            continue
        offset = ops.tensor(read.args[0]).storage_offset() - ops.tensor(base).storage_offset()  # type: ignore[union-attr]
        if isinstance(offset, int):
            reads.setdefault(base, {})[read] = offset
    for base, found in reads.items():
        value = ops.tensor(base)
        assert isinstance(value, FakeTensor)
        sent = _new(graph, base, torch.ops.farskip.to_host.default, (base,), [value.numel()], value)  # 2
        sent.meta[COMMUNICATES] = "launch"
        came = _new(
            graph, None, torch.ops.farskip.on_host.default, (sent, [base]), [value.numel()], value, next(iter(found))
        )
        came.meta[COMMUNICATES] = "wait"
        for read, offset in found.items():  # 3
            place = _new(graph, None, torch.ops.aten.select.int, (came, 0, offset), [], value, read)
            read.args = (place,)
    return len(reads)


def _base(node: Any) -> fx.Node | None:
    """The tensor that `node` is a view of, if it can be copied; None: it can't."""
    while isinstance(node.target, OpOverload) and node.target.is_view:
        node = node.args[0]
    value = ops.tensor(node)
    if value is None or value.device.type == "cpu" or node.op != "call_function":
        return None
    known = all(isinstance(size, int) for size in value.shape)
    return node if known and value.is_contiguous() and value.numel() <= MOST else None


def _new(
    graph: fx.Graph,
    after: fx.Node | None,
    target: Any,
    args: tuple[Any, ...],
    size: list[int],
    like: FakeTensor,
    before: fx.Node | None = None,
) -> fx.Node:
    """A call, after one node or before another, whose result is on the host."""
    where = graph.inserting_after(after) if after is not None else graph.inserting_before(before)
    with where:
        node = graph.call_function(target, args)
    node.meta["val"] = fake_tensor(like, size, [1] * len(size), like.dtype, ON_HOST)
    return node
