# SPDX-License-Identifier: Apache-2.0
"""Kernels that keep a stream, and as many blocks as wanted, busy for so many nanoseconds by the GPU's own clock.

In:    a kind of collective, nanoseconds, a number of blocks; the current stream of an NVIDIA GPU.
Out:   one kernel in that stream, whose name profilers and `farskip overlap` take for NCCL's.
Never: moves data, or depends on the clock rate, which changes with the load.

A kernel has the name of its function, so that each kind has its own. One block of one warp leaves the multiprocessors
to compute, as a copy engine would; a collective that computes takes blocks of 1024 threads, half of what a
multiprocessor holds.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import globaltimer

ONE_WARP, WHOLE_BLOCK = 1, 32
"""Warps of a block."""


@triton.jit
def _spin(ended: tl.tensor, nanoseconds: tl.tensor) -> None:
    start = globaltimer()
    now = start
    while now - start < nanoseconds:
        now = globaltimer()
    tl.store(ended + tl.program_id(0), now)  # without a result, the loop would be removed


@triton.jit(do_not_specialize=["nanoseconds"])
def ncclDevKernel_AllToAll_spin(ended: tl.tensor, nanoseconds: tl.tensor) -> None:
    _spin(ended, nanoseconds)


@triton.jit(do_not_specialize=["nanoseconds"])
def ncclDevKernel_AllReduce_spin(ended: tl.tensor, nanoseconds: tl.tensor) -> None:
    _spin(ended, nanoseconds)


@triton.jit(do_not_specialize=["nanoseconds"])
def ncclDevKernel_AllGather_spin(ended: tl.tensor, nanoseconds: tl.tensor) -> None:
    _spin(ended, nanoseconds)


@triton.jit(do_not_specialize=["nanoseconds"])
def ncclDevKernel_ReduceScatter_spin(ended: tl.tensor, nanoseconds: tl.tensor) -> None:
    _spin(ended, nanoseconds)


KERNELS = {
    "all_to_all": ncclDevKernel_AllToAll_spin,
    "all_reduce": ncclDevKernel_AllReduce_spin,
    "all_gather": ncclDevKernel_AllGather_spin,
    "reduce_scatter": ncclDevKernel_ReduceScatter_spin,
}


def spin(kind: str, seconds: float, blocks: int) -> None:
    """Keep the current stream busy for so many seconds.

    Args:
        kind: a key of `KERNELS`.
        seconds: from when the first block runs.
        blocks: of 1024 threads each; 0: one of 32.

    Raises:
        RuntimeError: a GPU of AMD, whose clock this kernel can't read.
    """
    if torch.version.hip is not None:
        raise RuntimeError("the emulated link reads the clock of NVIDIA's GPUs; there is none for AMD's yet")
    ended = torch.empty(max(blocks, 1), dtype=torch.int64, device="cuda")
    warps = WHOLE_BLOCK if blocks else ONE_WARP
    KERNELS[kind][(max(blocks, 1),)](ended, round(1e9 * seconds), num_warps=warps)
