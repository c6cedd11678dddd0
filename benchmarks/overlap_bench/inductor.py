# SPDX-License-Identifier: Apache-2.0
"""Inductor: its own overlap scheduling, actually enabled, as a baseline; what its generated code shows of overlap.

torch has two ways:
    inductor overlap   the scheduler on the post-grad graph, `aten_distributed_optimizations.enable_overlap_scheduling`
    inductor passes    the passes on kernels that `reorder_for_compute_comm_overlap_passes` recommends. The old flag
                       `reorder_for_compute_comm_overlap` alone runs none: its list is empty by default

Both were made for GPUs and have no costs on a CPU: the first raises, lacking Triton, when it queries the device's
speed, and the second takes every kernel to be free. So that neither is at a disadvantage, both get the estimates that
our scheduler uses, from the same profile, and the first also the two figures that it queries. That is patched in this
process alone. Nothing is benchmarked while compiling, as with ours.

Contract: `options_for` goes into `torch.compile(options=...)`; compile and run the first step inside `device_figures`.
`facts` reads the text of the code that runs, of every compiled graph with collectives, and trusts nothing that a pass
reports. Heavy kernels are library calls: matrix products and attention. Fused loops do not count. Within
`shared_kernels()` equal kernels are compiled once for all processes that share a cache folder. Within
`captured_programs()` what our own scheduler reads of the kernels is kept for bounds.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import fx
from torch._inductor.async_compile import AsyncCompile
from torch.utils import _runtime_estimation

from farskip_compile._compat import inductor
from farskip_compile.costs import HardwareProfile
from farskip_compile.costs.estimates import Estimates
from farskip_compile.passes.graph import comms
from farskip_compile.passes.schedule import kernels
from farskip_compile.passes.schedule.program import Program
from overlap_bench.cells import PASSES

_REORDER = "reorder_communication_preserving_peak_memory"
TRIO = [_REORDER, "sink_waits_iterative", _REORDER]
"""As torch's own configuration recommends them."""
_FRACTION = 0.75
"""Of the peak, which torch assumes a kernel to attain."""
_LAUNCH = re.compile(r"^\s*(?:(\w+) = )?torch\.ops\._c10d_functional\.(?!wait_tensor)\w+\.\w+\((\w+)")
_WAIT = re.compile(r"^\s*(?:\w+ = )?torch\.ops\._c10d_functional\.wait_tensor\.default\((\w+)")
_HEAVY = re.compile(
    r"extern_kernels\.(?:mm|bmm|addmm|baddbmm|_mm_plus_mm|convolution|_grouped_mm)\w*\("
    r"|torch\.ops\.(?:aten|mkl|mkldnn)\.\w*(?:mm|attention|linear|matmul|convolution)\w*(?:\.\w+)?\("
)
_EVENT = re.compile(r'(RAIIAtenRecordFunctionHandle) record_\w+\("(?:graph_\d+_)?(\w+?)(?:_\d+)?"')


def options_for(name: str, profile: HardwareProfile, imbalance: float = 1.0) -> dict[str, Any]:
    """Inductor's options for the variant `name`."""
    estimate = OurEstimate(profile, imbalance)
    if name == PASSES:
        return {
            "reorder_for_compute_comm_overlap": True,
            "reorder_for_compute_comm_overlap_passes": [*TRIO, _Unchanged(profile.digest())],
        }
    prefix = "aten_distributed_optimizations."
    return {
        f"{prefix}enable_overlap_scheduling": True,
        f"{prefix}custom_runtime_estimation": estimate.node,
        f"{prefix}compute_estimator": "analytical",
    }


@contextlib.contextmanager
def device_figures(profile: HardwareProfile, imbalance: float = 1.0) -> Iterator[None]:
    """Answer Inductor's queries about the device, and its passes' about kernels, from `profile`."""
    memory = profile.memory_bandwidth * profile.efficiency.memory / 1e9

    def flops(dtype: torch.dtype) -> float:
        peaks = profile.peak_flops
        peak: float = getattr(peaks, str(dtype).removeprefix("torch."), None) or peaks.float32
        return peak * profile.efficiency.matmul / _FRACTION / 1e12

    estimate = OurEstimate(profile, imbalance)
    with (
        mock.patch.object(_runtime_estimation, "get_gpu_dram_gbps", return_value=memory),
        mock.patch.object(_runtime_estimation, "get_device_tflops", flops),
        mock.patch.object(torch._inductor.config, "estimate_op_runtime", estimate.kernel),
    ):
        yield


@dataclass(frozen=True)
class _Unchanged:
    """A last pass that does nothing: Dynamo compares options, so that another profile is another compile."""

    digest: str

    def __call__(self, kernels: list[inductor.Kernel]) -> list[inductor.Kernel]:
        return kernels


class OurEstimate:
    """Our cost model with Inductor's interface; milliseconds."""

    def __init__(self, profile: HardwareProfile, imbalance: float) -> None:
        self._profile, self._imbalance = profile, imbalance
        self._graphs: dict[fx.Graph, Estimates] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> OurEstimate:
        """Itself: Inductor copies its configuration, and graphs must not be copied with it."""
        return self

    def _of(self, graph: fx.Graph) -> Estimates:
        if graph not in self._graphs:
            estimates = Estimates(graph, self._profile, self._imbalance)
            estimates.size.tell_inductor()
            self._graphs = {graph: estimates}  # graphs are asked about one after another
        return self._graphs[graph]

    def node(self, node: fx.Node, override_size: int | None = None) -> float:
        """Of a node of the graph. An override is given only where collectives are bucketed, which is off."""
        estimates = self._of(node.graph)
        return 1e3 * (estimates.collective(node) if comms.is_collective(node) else estimates.compute(node))

    def kernel(self, kernel: inductor.Kernel) -> float:
        """Of a kernel after fusion."""
        parts = inductor.kernel_parts(kernel)
        nodes = [node for _, origins in parts for node in origins]
        if not nodes or inductor.is_wait_kernel(kernel):
            return 0.0
        estimates = self._of(nodes[0].graph)
        if inductor.is_launch_kernel(kernel):
            launch = next((node for node in nodes if comms.is_collective(node)), None)
            return 0.0 if launch is None else 1e3 * estimates.collective(launch)
        return 1e3 * estimates.kernel(parts, inductor.kernel_traffic(kernel))


# Generated code


@dataclass(frozen=True)
class CodeFacts:
    """The collectives in all graphs of one variant."""

    collectives: int
    covered: int
    """Collectives with a heavy kernel between launch and wait."""
    heavy: int
    """Heavy kernels between launch and wait, summed over the collectives."""


@contextlib.contextmanager
def captured_programs() -> Iterator[list[Program]]:
    """The kernels of every graph that is compiled inside the `with` block, as our scheduler is given them."""
    found: list[Program] = []
    read = kernels.read_kernels

    def reading(*args: Any, **options: Any) -> Program:
        found.append(read(*args, **options))
        return found[-1]

    with mock.patch.object(kernels, "read_kernels", reading):
        yield found


def flights(code: str) -> list[int]:
    """Heavy kernels between launch and wait, for each collective of one graph in launch order; one that is never waited
    for counts to the end."""
    open_at: dict[str, tuple[int, int]] = {}
    found: list[int] = []
    heavy = 0
    for line in code.splitlines():
        if (launch := _LAUNCH.match(line)) is not None:
            result, argument = launch.groups()
            # in-place collectives are waited for by the name of their input
            name = argument if result is None or "_.default(" in line else result
            open_at[name] = (len(found), heavy)
            found.append(0)
        elif (wait := _WAIT.match(line)) is not None:
            if wait[1] in open_at:
                index, before = open_at.pop(wait[1])
                found[index] = heavy - before
        elif _HEAVY.search(line):
            heavy += 1
    for index, before in open_at.values():
        found[index] = heavy - before
    return found


def facts(codes: Sequence[str]) -> CodeFacts:
    """Several graphs together."""
    found = [heavy for code in codes for heavy in flights(code)]
    return CodeFacts(len(found), sum(heavy > 0 for heavy in found), sum(found))


def without_counters(source: str) -> str:
    """The same C++, with its profiler event named only after what was fused.

    The event's name counts the graphs and kernels of the process. No two compiles would give the same text, and each
    variant, ratio and phase would build all its kernels anew, for minutes.
    """
    return _EVENT.sub(r'\1 record_kernel_("\2"', source)


@contextlib.contextmanager
def shared_kernels() -> Iterator[None]:
    """Compile inside the `with` block."""
    compile_kernel = AsyncCompile.cpp_pybinding

    def shared(self: AsyncCompile, argtypes: list[str], source_code: str) -> Any:
        return compile_kernel(self, argtypes, without_counters(source_code))

    with mock.patch.object(AsyncCompile, "cpp_pybinding", shared):
        yield
