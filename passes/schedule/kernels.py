"""After fusion: order Inductor's kernels, which has the last word.

In:    Inductor's kernels of one graph, in the order that Inductor found.
Out:   the same kernels, ordered for overlap; a permutation that keeps every dependence.
Never: fuses, splits or changes a kernel; raises the simulated time or, beyond the limit, the memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from farskip_compile._compat import inductor
from farskip_compile.passes.schedule.from_kernels import KernelEstimate, baseline_peak, read_kernels
from farskip_compile.passes.schedule.search import Limits, Schedule, list_schedule


def schedule_kernels(
    kernels: Sequence[inductor.Kernel], estimate: KernelEstimate, limits: Limits, inputs: int = 0
) -> tuple[list[inductor.Kernel], Schedule]:
    """The kernels in their new order, and its schedule.

    Args:
        kernels: of one graph.
        estimate: costs.
        limits: bounds on memory, as a fraction of what the kernels would hold if nothing had been scheduled.
        inputs: bytes that the graph is given and may not free, such as parameters.
    """
    program = read_kernels(kernels, estimate, inputs)
    schedule = list_schedule(program, limits, baseline_peak(kernels, program))
    return [kernels[index] for index in schedule.order], schedule
