# SPDX-License-Identifier: Apache-2.0
"""With CUDA graphs: no collective is in flight where one of them begins or ends.

In:    the kernels of a graph in their final order, inside the compile whose options have `cuda_graphs.LEFT_OUT`.
Out:   `CudaGraphCapture`; where a CUDA graph would hold a launch without its wait, or a wait without its launch,
       Inductor is told to leave all collectives of the graph out of CUDA graphs.
Never: changes the order. Inductor's own order for fewer CUDA graphs, made after all passes, is switched off by our
       options, since nobody would check it, and it knows nothing of overlap: that it is off is checked here.

A launch makes the stream of its communicator a part of the capture. A capture that ends before the stream has joined it
again fails (cudaErrorStreamCaptureUnjoined), and so does a wait for an event of another capture
(cudaErrorStreamCaptureIsolation). Exchanges without drops meet both: the host reads their sizes in the middle.

Algorithm:
1. Divide the order in the runs of kernels that Inductor will make of it, captured or not.
2. A flight is whole if its launch and all its waits are in one captured run, or all in none.
3. If one is not, leave the operators of launches and waits out, divide again, and check again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from farskip_compile._compat import cuda_graphs, inductor
from farskip_compile._compat.names import FEWER_PARTS
from farskip_compile.errors import ConfigError, Where
from farskip_compile.passes.schedule.pins import awaited


@dataclass(frozen=True)
class CudaGraphCapture:
    """What Inductor captures of a graph."""

    graphs: int = 0
    """CUDA graphs."""
    without_collectives: bool = False
    """Whether collectives were left out of them."""


def keep_flights_whole(kernels: Sequence[inductor.Kernel]) -> CudaGraphCapture:
    """See the module's contract.

    Raises:
        ConfigError: Inductor is to reorder; or to capture all or nothing, and a flight begins or ends elsewhere.
    """
    flights = [one for one in kernels if inductor.is_launch_kernel(one) or inductor.is_wait_kernel(one)]
    if not flights or not cuda_graphs.are_captured():
        return CudaGraphCapture()
    if cuda_graphs.in_parts() and cuda_graphs.reorders_for_them():
        raise ConfigError(
            "Inductor is told to reorder kernels for fewer CUDA graphs, after the order of collectives was decided and "
            "verified",
            way_out=f'without "{FEWER_PARTS}"; schedule=False, which rewires all the same, keeps it',
        )
    broken = _broken(kernels)  # 1, 2
    if broken is not None and cuda_graphs.in_parts():
        cuda_graphs.leave_out(flights)  # 3
        broken = _broken(kernels)
    if broken is not None:
        raise ConfigError(
            "a collective is in flight where a CUDA graph begins or ends, and can't be captured",
            way_out='inductor={"graph_partition": True}, which leaves collectives out; or no CUDA graphs',
            where=Where(node=inductor.kernel_name(broken)),
        )
    runs = cuda_graphs.parts(kernels)
    inside = {kernel for captured, run in runs if captured for kernel in run}
    return CudaGraphCapture(sum(captured for captured, _ in runs), inside.isdisjoint(flights))


def _broken(kernels: Sequence[inductor.Kernel]) -> inductor.Kernel | None:
    """The first launch or wait of a flight that is not whole."""
    place: dict[inductor.Kernel, int | None] = {}
    for number, (captured, run) in enumerate(cuda_graphs.parts(kernels)):
        place.update(dict.fromkeys(run, number if captured else None))
    made_by = {name: kernel for kernel in kernels for name in inductor.kernel_makes(kernel)}
    landed: set[inductor.Kernel] = set()
    for kernel in kernels:
        if inductor.is_wait_kernel(kernel):
            launched = awaited(kernel, made_by)
            landed.update(launched)
            if any(place[one] != place[kernel] for one in launched) or (not launched and place[kernel] is not None):
                return kernel
    unwaited = (one for one in kernels if inductor.is_launch_kernel(one) and one not in landed)
    return next((one for one in unwaited if place[one] is not None), None)
