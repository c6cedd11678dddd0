"""Inductor's own overlap scheduling, actually enabled, as a baseline: the two ways that torch has.

    inductor overlap   the scheduler on the post-grad graph, `aten_distributed_optimizations.enable_overlap_scheduling`
    inductor passes    the passes on kernels that `reorder_for_compute_comm_overlap_passes` recommends. The old flag
                       `reorder_for_compute_comm_overlap` alone runs none: its list is empty by default

Both were made for GPUs and have no costs on a CPU: the first raises, lacking Triton, when it queries the device's
speed, and the second takes every kernel to be free. So that neither is at a disadvantage, both get the estimates that
our scheduler uses, from the same profile, and the first also the two figures that it queries. That is patched in this
process alone. Nothing is benchmarked while compiling, as with ours.

Contract: `options_for` goes into `torch.compile(options=...)`; compile and run the first step inside `device_figures`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import fx
from torch.utils import _runtime_estimation

from farskip_compile._compat import inductor
from farskip_compile.costs import HardwareProfile
from farskip_compile.costs.estimates import Estimates
from farskip_compile.passes.graph import ops
from overlap_bench.cells import PASSES

_REORDER = "reorder_communication_preserving_peak_memory"
TRIO = [_REORDER, "sink_waits_iterative", _REORDER]
"""As torch's own configuration recommends them."""
_FRACTION = 0.75
"""Of the peak, which torch assumes a kernel to attain."""


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
    """Our cost model behind Inductor's interface; milliseconds."""

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
        return 1e3 * (estimates.collective(node) if ops.is_collective(node) else estimates.compute(node))

    def kernel(self, kernel: inductor.Kernel) -> float:
        """Of a kernel after fusion."""
        parts = inductor.kernel_parts(kernel)
        nodes = [node for _, origins in parts for node in origins]
        if not nodes or inductor.is_wait_kernel(kernel):
            return 0.0
        estimates = self._of(nodes[0].graph)
        if inductor.is_launch_kernel(kernel):
            launch = next((node for node in nodes if ops.is_collective(node)), None)
            return 0.0 if launch is None else 1e3 * estimates.collective(launch)
        return 1e3 * estimates.kernel(parts, inductor.kernel_traffic(kernel))
