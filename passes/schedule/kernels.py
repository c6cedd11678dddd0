# SPDX-License-Identifier: Apache-2.0
"""On Inductor's kernels: keep what hides collectives in its place through fusion, and order the fused kernels.

In:    Inductor's kernels of one graph, before or after fusion, in the order that Inductor found.
Out:   before fusion (`pin_products`) the same kernels; each matrix product or attention between a launch and its wait
       now depends on the launch, for order alone. After fusion (`schedule_kernels`), which has the last word, the same
       kernels, ordered for overlap; a permutation that keeps every dependence.
Never: fuses, splits or changes a kernel; keeps memory alive; raises the simulated time or the memory beyond the limit.

Why pins: Inductor may fuse a kernel that leads to a launch, such as a router, with one that follows a product which is
to hide that very launch, such as the softmax of an attention. Then the launch has to wait for the product, and nothing
is hidden. With the dependence, that fusion is a cycle. Every other fusion is still made. (Waits have such pins in the
graph, see `schedule_graph`; products have theirs here, since in the graph a pin hides what it pins from other passes.)
All pins end with fusion: the order of the graph was within its own account of memory, which knows no fusion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from farskip_compile._compat import inductor
from farskip_compile.passes.graph import ops
from farskip_compile.passes.schedule.from_kernels import KernelEstimate, read_kernels, unscheduled_order
from farskip_compile.passes.schedule.least_memory import least_memory
from farskip_compile.passes.schedule.memory import live_bytes
from farskip_compile.passes.schedule.program import in_order_of
from farskip_compile.passes.schedule.search import MemoryLimits, Schedule, list_schedule

AIM = 0.8
"""Fraction of the allowed increase in memory that is aimed at. The account is that of the program to 1 % of the peak;
what is promised is what is measured."""


def pin_products(kernels: Sequence[inductor.Kernel]) -> None:
    """Pin the products of one graph, by one walk over its kernels."""
    made_by = {name: kernel for kernel in kernels for name in inductor.kernel_makes(kernel)}
    in_flight: dict[inductor.Kernel, None] = {}
    pins: dict[inductor.Kernel, list[inductor.Kernel]] = {}
    for kernel in kernels:
        if inductor.is_launch_kernel(kernel):
            in_flight[kernel] = None
        elif inductor.is_wait_kernel(kernel):
            for launch in awaited(kernel, made_by):
                in_flight.pop(launch, None)
        elif in_flight and _is_product(kernel):
            pins[kernel] = list(in_flight)
    inductor.pin_kernels(kernels, pins)


def awaited(wait: inductor.Kernel, made_by: dict[str, inductor.Kernel]) -> list[inductor.Kernel]:
    """The launches that `wait` is for, through kernels that take results apart; `made_by`: buffer -> what makes it.

    What a wait needs besides, for order alone, are products.
    """
    found = []
    for maker in (made_by[need] for need in inductor.kernel_needs(wait) if need in made_by):
        further = [maker, *(made_by[name] for name in inductor.kernel_needs(maker) if name in made_by)]
        found += [kernel for kernel in further if inductor.is_launch_kernel(kernel)][:1]
    return found


def _is_product(kernel: inductor.Kernel) -> bool:
    return any(
        extern and origins and (ops.is_matmul(origins[0]) or ops.is_attention(origins[0]))
        for extern, origins in inductor.kernel_parts(kernel)
    )


def schedule_kernels(
    kernels: Sequence[inductor.Kernel], estimate: KernelEstimate, limits: MemoryLimits, inputs: int = 0
) -> tuple[list[inductor.Kernel], Schedule]:
    """The kernels in their new order, and its schedule.

    `limits` on memory are a fraction of what the kernels would hold if nothing had been scheduled; `inputs` are the
    bytes that the graph is given and may not free, such as parameters.
    """
    program = read_kernels(kernels, estimate, inputs)
    limits = replace(limits, memory_increase=AIM * limits.memory_increase)
    first = len(program.tasks) - len(kernels)  # launches of an earlier graph
    unscheduled = (*range(first), *(index + first for index in unscheduled_order(kernels)))
    baseline = max(live_bytes(program, unscheduled), default=0)
    known = [least_memory(program), in_order_of(program, unscheduled)]
    schedule = list_schedule(program, limits, baseline, known)
    return [kernels[index - first] for index in schedule.order[first:]], schedule  # all others need what arrives
