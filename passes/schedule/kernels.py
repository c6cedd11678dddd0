"""The last word on order: the list scheduler over Inductor's kernels, after fusion.

In:    Inductor's kernels of one graph in the order Inductor has found.
Out:   the same kernels, ordered for overlap; a permutation that keeps every dependence.
Never: fuses, splits or changes a kernel; raises the simulated time or, beyond the limit, the memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from farskip_compile._compat import inductor
from farskip_compile.passes.schedule.from_kernels import KernelEstimate, read_kernels
from farskip_compile.passes.schedule.search import Limits, Schedule, list_schedule
from farskip_compile.passes.schedule.unscheduled import unscheduled_peak


def schedule_kernels(
    kernels: Sequence[inductor.Kernel], estimate: KernelEstimate, limits: Limits, inputs: int = 0
) -> tuple[list[inductor.Kernel], Schedule]:
    """The kernels in their new order, and the schedule behind it.

    Args:
        kernels: of one graph.
        estimate: costs.
        limits: bounds on memory; a part of what the kernels would hold if neither they nor the graph were scheduled.
        inputs: bytes that the graph is given and may not free, such as parameters.
    """
    program = read_kernels(kernels, estimate, inputs)
    schedule = list_schedule(program, limits, unscheduled_peak(kernels, program))
    return [kernels[index] for index in schedule.order], schedule
