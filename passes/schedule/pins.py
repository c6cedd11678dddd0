# SPDX-License-Identifier: Apache-2.0
"""Keep the products that hide collectives in their places through Inductor's fusion.

In:    Inductor's kernels of one graph, before fusion, in the order that Inductor found.
Out:   the same kernels; each matrix product or attention between a launch and its wait now depends on the launch, for
       order alone.
Never: fuses, splits or changes a kernel; keeps memory alive.

Why pins: Inductor may fuse a kernel that leads to a launch, such as a router, with one that follows a product which is
to hide that very launch, such as the softmax of an attention. Then the launch has to wait for the product, and nothing
is hidden. With the dependence, that fusion is a cycle. Every other fusion is still made. (Waits have such pins in the
graph, see `schedule_graph`; products have theirs here, since in the graph a pin hides what it pins from other passes.)
All pins end with fusion: the order of the graph was within its own account of memory, which knows no fusion.
"""

from __future__ import annotations

from collections.abc import Sequence

from farskip_compile._compat import inductor
from farskip_compile.passes.graph import ops


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
    """Return the launches that `wait` is for, through kernels that take results apart.

    `made_by` maps each buffer to the kernel that makes it. What a wait needs besides, for order alone, are products.
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
