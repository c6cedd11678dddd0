# SPDX-License-Identifier: Apache-2.0
"""The pass on Inductor's fused kernels, which has the last word on their order."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import fx

from farskip_compile._compat import inductor
from farskip_compile.compiler.inductor_passes.cuda_graphs import CudaGraphCapture, keep_flights_whole
from farskip_compile.compiler.inductor_passes.plan import Plan
from farskip_compile.passes.contract import Stage
from farskip_compile.passes.gc_pause import collector_paused
from farskip_compile.passes.runner import PassRunner
from farskip_compile.passes.schedule.from_graph import input_bytes
from farskip_compile.passes.schedule.kernels import schedule_kernels
from farskip_compile.passes.schedule.search import Schedule
from farskip_compile.records.announcement import Announcement, announcement
from farskip_compile.verify.kernels import verify_kernels


@dataclass(frozen=True)
class KernelPass:
    """A member of Inductor's `reorder_for_compute_comm_overlap_passes`."""

    plan: Plan
    identity: str
    """The identity of the compile: Inductor keys its caches by the pickled fields of this object."""

    @collector_paused()
    def __call__(self, kernels: list[inductor.Kernel]) -> list[inductor.Kernel]:
        """Return the kernels in the order in which they will run."""
        launches = [kernel for kernel in kernels if inductor.is_launch_kernel(kernel)]
        if not launches:
            keep_flights_whole(kernels)  # what arrives is waited for
            return kernels
        first = [kernel for kernel in kernels if inductor.calls(kernel, announcement())]
        rest = [kernel for kernel in kernels if kernel not in first]
        graph = next(node.graph for _, origins in inductor.kernel_parts(launches[0]) for node in origins)
        inductor.unpin_kernels(rest)
        passes = PassRunner(Stage.AFTER_FUSION, rest, self.plan.config.disable_passes)
        schedule = None
        if passes.is_enabled("schedule_kernels"):
            schedule = passes.apply("schedule_kernels", _schedule_in_place, rest, graph, self.plan)
        ordered = [*first, *rest]
        captured = passes.step("cuda_graphs", keep_flights_whole, ordered)
        for kernel in first:
            _report_kernels(kernel, schedule, captured)
        passes.verify(verify_kernels, kernels, ordered)
        passes.finish()
        return ordered


def _schedule_in_place(kernels: list[inductor.Kernel], graph: fx.Graph, plan: Plan) -> Schedule:
    """Order `kernels`, which were made of `graph`, and return their schedule."""
    estimates = plan.estimates(graph)
    kernels[:], schedule = schedule_kernels(list(kernels), estimates, plan.limits, input_bytes(graph, estimates))
    return schedule


def _report_kernels(kernel: inductor.Kernel, schedule: Schedule | None, captured: CudaGraphCapture) -> None:
    """Put the figures of the kernels into the announcement that `kernel` makes."""
    announced = Announcement.from_text(inductor.text_argument(kernel))
    report = announced.report
    if schedule is not None:
        report = report.ordered(schedule, level="kernels")
        if report.unscheduled is not None:
            report = replace(report, unscheduled=replace(report.unscheduled, peak_bytes=schedule.baseline_peak))
    report = replace(report, cuda_graphs=captured.graphs, outside_cuda_graphs=captured.without_collectives)
    inductor.set_text_argument(kernel, replace(announced, report=report).to_text())
