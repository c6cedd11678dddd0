# SPDX-License-Identifier: Apache-2.0
"""Read a `Program` off Inductor's kernels after fusion, for the same scheduler.

In:    the kernels of one graph, in an order that respects their dependences; costs.
Out:   the program, in which task i is kernel i, or an `UnsupportedPatternError` if the order breaks a dependence. From
       `unscheduled_order`: the order if nothing had been scheduled, from whose peak the limit on memory starts.
Never: changes a kernel.

A kernel needs whatever makes a buffer that it depends on; Inductor's own dependences already include control
dependences, the order of writes, and that memory of a collective in flight is read by its wait.

The order in which Inductor gives us the kernels can't stand for the unscheduled one: it follows the scheduled graph, so
that it may already include what overlapping costs. (Where it holds less, the limit starts from there.) So:
1. A kernel's place in the graph as it came (`from_graph.remember_order`) is, as with Inductor, that of the first of
   the operations fused in it; if it has none, that of the last kernel that it needs. An operation's is that of its last
   node: what comes before it, such as a constant, may have been written for another kernel, and is made anew here.
2. Inductor sorts them so that each comes after those whose results it needs, and then for memory. What a kernel needs
   for order alone, such as our pins, was not there at first; nor were our hints for sizes that depend on data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import fx

from farskip_compile._compat import inductor, kernel_memory
from farskip_compile.errors import UnsupportedPatternError
from farskip_compile.passes.graph import comms, user_calls
from farskip_compile.passes.schedule.from_graph import (
    PLACE,
    NetworkEstimate,
    arrival_task,
    launch_task,
    order_blocking,
)
from farskip_compile.passes.schedule.in_flight import arrival, arrivals
from farskip_compile.passes.schedule.program import Buffer, Program, Task, TaskRole


class KernelEstimate(NetworkEstimate, Protocol):
    """What the adapter asks of a cost model."""

    def kernel(self, parts: list[tuple[bool, list[fx.Node]]], traffic: int) -> float:
        """Seconds of a kernel: what was fused into it, and the bytes it moves."""


def read_kernels(kernels: Sequence[inductor.Kernel], estimate: KernelEstimate, inputs: int = 0) -> Program:
    """Read the program of `kernels`; `inputs` are the bytes of what it is given and may not free.

    Launches of an earlier graph, which are waited for here, come first; then a task for each kernel.
    """
    came = _arrivals(kernels)
    tasks: list[Task] = [
        arrival_task(wait, inductor.kernel_name(kernel), channel, estimate) for kernel, (wait, channel) in came.items()
    ]
    first = len(came)
    flying = {kernel: i for i, kernel in enumerate(came)}
    maker = {name: i for i, kernel in enumerate(kernels, first) for name in inductor.kernel_makes(kernel)}
    found = [{maker[name] for name in inductor.kernel_needs(kernel) if name in maker} - {i}
             for i, kernel in enumerate(kernels, first)]  # fmt: skip
    parts_of = list(map(inductor.kernel_parts, kernels))
    order_blocking([None] * first + [_communicates(parts) for parts in parts_of], [set()] * first + found)
    for i, (kernel, parts, needed) in enumerate(zip(kernels, parts_of, found, strict=True), first):
        needs = tuple(sorted(needed)) or tuple(range(first))
        name = inductor.kernel_name(kernel)
        if needs and needs[-1] > i:
            raise _out_of_order(name, inductor.kernel_name(kernels[needs[-1] - first]), parts)
        launch = _launch_node(parts) if inductor.is_launch_kernel(kernel) else None
        awaited = _awaited(tasks, needs) if inductor.is_wait_kernel(kernel) else None
        awaited = flying.get(kernel, awaited)
        if launch is not None:
            tasks.append(launch_task(launch, name, needs, estimate))
        elif awaited is not None:
            tasks.append(Task(name, needs, 0.0, TaskRole.WAIT, launch=awaited))
        else:
            seconds = estimate.kernel(parts, inductor.kernel_traffic(kernel))
            tasks.append(Task(name, needs, seconds, joins=kernel_memory.joins_neighbours(kernel)))
    buffers = [
        Buffer(
            one.size,
            one.maker + first if one.maker >= 0 else -1,
            tuple(user + first for user in one.users),
            one.kept,
            tuple(part + first for part in one.parts),
            tuple(one.over),
        )
        for one in kernel_memory.kernel_buffers(kernels)
    ]
    return Program(tuple(tasks), (*buffers, Buffer(inputs, kept=True)))


def _arrivals(kernels: Sequence[inductor.Kernel]) -> dict[inductor.Kernel, tuple[fx.Node, str]]:
    """The kernels that wait for what came in flight, with the node of the wait, and the process group."""
    found = {}
    for kernel in kernels:
        if inductor.is_wait_kernel(kernel):
            waits = [node for _, origins in inductor.kernel_parts(kernel) for node in origins if comms.is_wait(node)]
            flight = next(((wait, flight) for wait in waits if (flight := arrival(wait)) is not None), None)
            if flight is not None and flight[0] in arrivals(flight[0].graph):
                found[kernel] = flight[0], flight[1][1]
    return found


def unscheduled_order(kernels: Sequence[inductor.Kernel]) -> tuple[int, ...]:
    """The indices of `kernels` in the order that Inductor would choose for the graph as it came."""
    maker = {name: i for i, kernel in enumerate(kernels) for name in inductor.kernel_makes(kernel)}
    places: list[int] = []
    for kernel in kernels:  # 1.
        parts = [origins for _, origins in inductor.kernel_parts(kernel)]
        needed = (maker[name] for name in inductor.kernel_reads(kernel) if name in maker)
        latest = max((places[need] for need in needed if need < len(places)), default=0)
        known = [max(found) for part in parts if (found := [node.meta[PLACE] for node in part if PLACE in node.meta])]
        places.append(min(known, default=latest))
    number = {kernel: i for i, kernel in enumerate(kernels)}
    by_place = [kernels[index] for index in sorted(range(len(kernels)), key=places.__getitem__)]
    return tuple(number[kernel] for kernel in kernel_memory.inductors_order(by_place))  # 2.


def _out_of_order(reader: str, writer: str, parts: list[tuple[bool, list[fx.Node]]]) -> UnsupportedPatternError:
    node = next((node for _, origins in parts for node in origins), None)
    return UnsupportedPatternError(
        f"Inductor would run the kernel {reader} before {writer}, which writes what it reads, in place",
        way_out="update to torch 2.13 or later, which can keep the order, or write that tensor out of place",
        where=user_calls.where(node) if node is not None else None,
    )


def _launch_node(parts: list[tuple[bool, list[fx.Node]]]) -> fx.Node | None:
    """The graph node of a launch. Inductor's first origin may be its wait."""
    return next((node for _, origins in parts for node in origins if comms.is_collective(node)), None)


def _communicates(parts: list[tuple[bool, list[fx.Node]]]) -> fx.Node | None:
    """The graph node of a launch, or of a collective that blocks."""
    blocks = (origins[0] for extern, origins in parts if extern and origins and comms.is_blocking(origins[0]))
    return _launch_node(parts) or next(blocks, None)


def _awaited(tasks: Sequence[Task], needs: tuple[int, ...]) -> int | None:
    """The launch that a wait is for: the newest one among its needs, through kernels that take results apart."""
    for need in reversed(needs):
        if tasks[need].role is TaskRole.LAUNCH:
            return need
    for need in reversed(needs):
        for further in reversed(tasks[need].needs):
            if tasks[further].role is TaskRole.LAUNCH:
                return further
    return None
