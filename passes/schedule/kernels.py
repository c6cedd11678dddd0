# SPDX-License-Identifier: Apache-2.0
"""Order Inductor's fused kernels for overlap.

In:    Inductor's kernels of one graph, after fusion, in the order that Inductor found.
Out:   the same kernels, ordered for overlap; a permutation that keeps every dependence. This order has the last word.
Never: fuses, splits or changes a kernel; raises the simulated time or the memory beyond the limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from farskip_compile._compat import inductor
from farskip_compile.passes.schedule.from_kernels import KernelEstimate, read_kernels, unscheduled_order
from farskip_compile.passes.schedule.least_memory import least_memory
from farskip_compile.passes.schedule.memory import live_bytes
from farskip_compile.passes.schedule.program import in_order_of
from farskip_compile.passes.schedule.search import MemoryLimits, Schedule, list_schedule

AIM = 0.8
"""Fraction of the allowed increase in memory that is aimed at. The account is that of the program to 1 % of the peak;
what is promised is what is measured."""


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
