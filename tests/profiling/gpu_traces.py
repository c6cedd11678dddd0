# SPDX-License-Identifier: Apache-2.0
"""Kernels of constructed GPU traces, as `torch.profiler` would show them. Times are in microseconds.

Needs nothing but the standard library: `hta_reference.py` uses it in another environment.
"""

from __future__ import annotations

import random
from typing import Any

ALL_REDUCE = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
SEND_RECV = "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)"
GEMM = "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_bf16_128x256_32x3_nn_align8>(Params)"
LANES = (
    (7, (GEMM, "triton_poi_fused_gelu_1")),
    (11, ("flash_fwd_kernel",)),
    (20, (SEND_RECV,)),
    (24, (ALL_REDUCE,)),
)


def kernel(name: str, start: float, end: float, stream: int = 7, device: int = 0, **args: Any) -> dict[str, Any]:
    return {
        "ph": "X",
        "cat": "gpu_memcpy" if name.startswith("Memcpy") else "gpu_memset" if name.startswith("Memset") else "kernel",
        "name": name,
        "pid": device,
        "tid": stream,
        "ts": start,
        "dur": end - start,
        "args": {"device": device, "stream": stream, **args},
    }


def random_gpu_events(seed: int) -> list[dict[str, Any]]:
    """Kernels on two streams of compute and two of communication; the same for a seed on every machine.

    Whole microseconds: HolisticTraceAnalysis rounds others.
    """
    rng = random.Random(seed)
    events = []
    for stream, names in LANES:
        now = rng.randrange(50)
        for number in range(rng.randrange(1, 40)):
            length = rng.randrange(1, 60)
            events.append(kernel(rng.choice(names), now, now + length, stream, correlation=1000 * stream + number))
            now += length + rng.choice((0, 0, rng.randrange(80)))
    return events
