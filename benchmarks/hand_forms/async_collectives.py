# SPDX-License-Identifier: Apache-2.0
"""Collectives that are launched now and waited for later, in backward as well; the order of backward; the streams.

In:    a tensor that nothing else uses, and the participating ranks.
Out:   `Launched`, whose `wait()` returns the result. Before that, `value` is memory in flight.
Never: waits implicitly in forward. Backward does: nothing else can be scheduled meanwhile.

In forward, eager PyTorch overlaps the caller's work between launch and wait. Backward has no caller: the engine runs
the nodes. Two things make it overlap (arXiv 2511.11505, section 4.1 and appendix C):
    1. The backward of a launch launches the transposed collective (all-to-all with the splits swapped; all-reduce for
       all-reduce) and returns memory in flight. A hook on the collective's input waits, just before that gradient is
       used.
    2. Among the ready nodes, the engine runs the one with the highest sequence number, by default its number in the
       order of creation. So the node of a launch gets the highest of all, to be launched at once, and nodes that would
       wait may get low ones, so that independent ones run first: `backward_at`.
Forward and backward have separate handles: backward may run while another forward is under way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
import torch.distributed as dist

from farskip_compile._compat.tensors import set_sequence_number

FIRST = 2**31 - 1
"""Sequence number of nodes that run as soon as they are ready."""

DistGroup = dist.ProcessGroup


class Launched:
    """A collective in flight, or, if `work` is None, a value that is complete."""

    def __init__(self, value: torch.Tensor, work: dist.Work | None = None) -> None:
        self.value = value
        self.work = work

    def wait(self) -> torch.Tensor:
        """Return the result. On an accelerator this blocks the current stream, not the host."""
        if self.work is not None:
            self.work.wait()
            self.work = None  # the backend keeps the memory alive only until here
        return self.value


class _InFlight:
    """The handles of a collective, and of the transposed one that its backward launches."""

    forward: dist.Work | None = None
    """The handle until its user has it: the autograd graph holds this object, and a handle holds memory."""
    backward: Launched | None = None

    def wait(self, _: torch.Tensor) -> None:
        """Wait in backward: the hook of a gradient, which may still be in flight."""
        if self.backward is not None:
            self.backward.wait()
            self.backward = None


class _AllToAll(torch.autograd.Function):
    """The launch of an all-to-all; its backward is the launch of the transposed one."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, received: list[int], sent: list[int], group: DistGroup, flight: _InFlight
    ) -> torch.Tensor:
        ctx.received, ctx.sent, ctx.group, ctx.flight = received, sent, group, flight
        output = x.new_empty([sum(received), *x.shape[1:]])
        flight.forward = dist.all_to_all_single(output, x, received, sent, group=group, async_op=True)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        gradient = gradients[0].contiguous()
        output = gradient.new_empty([sum(ctx.sent), *gradient.shape[1:]])
        work = dist.all_to_all_single(output, gradient, ctx.sent, ctx.received, group=ctx.group, async_op=True)
        ctx.flight.backward = Launched(output, work)
        return output, None, None, None, None


class _AllReduce(torch.autograd.Function):
    """The launch of an all-reduce; its backward is the launch of another one."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: DistGroup, flight: _InFlight) -> torch.Tensor:
        ctx.group, ctx.flight = group, flight
        output = x.clone(memory_format=torch.contiguous_format)
        flight.forward = dist.all_reduce(output, group=group, async_op=True)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        output = gradients[0].clone(memory_format=torch.contiguous_format)  # others may read the same gradient
        ctx.flight.backward = Launched(output, dist.all_reduce(output, group=ctx.group, async_op=True))
        return output, None, None


def launch_all_to_all(
    x: torch.Tensor, received: list[int], sent: list[int], group: DistGroup | None, *, wait_at: int
) -> Launched:
    """Exchange rows with all ranks.

    Args:
        x: [sum(sent), ...], contiguous, sorted by destination rank; nothing else may use it.
        received: rows from each rank.
        sent: rows to each rank.
        group: the ranks; None: the rows stay here, and there is nothing to wait for.
        wait_at: sequence number of the node that waits in backward, the one that made `x`.
    """
    if group is None:
        return Launched(x)
    flight = _InFlight()
    output = _AllToAll.apply(x, received, sent, group, flight)
    backward_at(wait_at, x)
    return _launched(x, output, flight)


def launch_all_reduce(partial: torch.Tensor, group: DistGroup | None) -> Launched:
    """Launch the sum over all ranks.

    Args:
        partial: this rank's share; nothing else may use it. It is overwritten if no gradient is needed.
        group: the ranks; None: it is already complete.
    """
    if group is None:
        return Launched(partial)
    if not partial.requires_grad:
        return Launched(partial, dist.all_reduce(partial, group=group, async_op=True))
    flight = _InFlight()
    return _launched(partial, _AllReduce.apply(partial, group, flight), flight)


def _launched(x: torch.Tensor, output: torch.Tensor, flight: _InFlight) -> Launched:
    if x.requires_grad:
        x.register_hook(flight.wait)
        backward_at(FIRST, output)
    work, flight.forward = flight.forward, None
    return Launched(output, work)


def backward_at(number: int, *tensors: torch.Tensor) -> None:
    """Set the sequence number of the nodes that produced the tensors, for backward."""
    for tensor in tensors:
        node: Any = tensor.grad_fn
        if node is not None:
            set_sequence_number(node, number)


@dataclass(frozen=True)
class Streams:
    """The two input streams of a layer."""

    n: torch.Tensor
    """The stream without the previous layer's routed output, for the attention, [B, T, D]."""
    late: Callable[[], torch.Tensor] | None = None
    """A function, called once, that waits for that output and returns x, [B, T, D]; None: x is n."""

    def x(self) -> torch.Tensor:
        """Return the sum of all terms, for the feed-forward."""
        return self.n if self.late is None else self.late()


class BackwardOrder(IntEnum):
    """Sequence numbers of nodes that must run after everything independent of them; higher ones come first.

    While the transposed combine is in flight, the shared experts and the attention proper run by their own, large
    numbers, and then COMBINE waits for it. The experts run, and the transposed dispatch is launched; under it run
    PROJECTIONS and ROUTING, and then DISPATCH waits for it. x, and with it the previous layer, needs no number: it is
    not ready earlier.
    """

    DISPATCH = 0
    """Input of the dispatch."""
    ROUTING = 1
    """Weights of the chosen experts."""
    PROJECTIONS = 2
    """Queries, keys and values."""
    COMBINE = 3
    """Input of the combine."""
