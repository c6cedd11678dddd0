# SPDX-License-Identifier: Apache-2.0
"""The private Inductor APIs behind CUDA graphs; a part of `_compat`.

With `graph_partition` Inductor captures each longest run of kernels that it can as a CUDA graph, and calls what is
between them as it is. It decides so after all passes, from the order of kernels and what `should_partition` says of
each. Without it, all of a graph is captured, or nothing.

Checked by running on torch 2.13.0; the same code, read, on 2.11.0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch._inductor import config as inductor_config
from torch._inductor import ir

from farskip_compile._compat.inductor import Kernel, inductor_setting
from farskip_compile._compat.names import CUDA_GRAPHS, FEWER_PARTS, IN_PARTS, LEFT_OUT


def are_captured() -> bool:
    """Whether Inductor is to capture CUDA graphs (`mode="reduce-overhead"`, `"max-autotune"`)."""
    return bool(inductor_setting(CUDA_GRAPHS))


def in_parts() -> bool:
    """Whether it captures what can be captured of a graph, rather than all of it or nothing."""
    return bool(inductor_setting(IN_PARTS))


def reorders_for_them() -> bool:
    """Whether Inductor is to order kernels anew, after every pass on their order, so that there are fewer parts."""
    return bool(inductor_setting(FEWER_PARTS))


def parts(kernels: Sequence[Kernel]) -> list[tuple[bool, list[Kernel]]]:
    """The runs of kernels that Inductor will make of this order: whether one is captured, and its kernels."""
    if not in_parts():
        return [(True, list(kernels))]
    found: list[tuple[bool, list[Kernel]]] = []
    for kernel in kernels:
        captured = not kernel.scheduler.should_partition(kernel)  # a reason, or None
        if not found or found[-1][0] is not captured:
            found.append((captured, []))
        found[-1][1].append(kernel)
    return found


def leave_out(kernels: Iterable[Kernel]) -> None:
    """Inside a compile whose options have the key `LEFT_OUT`: capture no call of the operators that `kernels` call."""
    called = [part.node.op_overload for kernel in kernels for part in kernel.get_nodes() if _is_call(part.node)]
    known = inductor_setting(LEFT_OUT)
    setattr(inductor_config, LEFT_OUT, sorted({*known, *(operator.name() for operator in called)}))


def _is_call(node: object) -> bool:
    return isinstance(node, ir.FallbackKernel) and isinstance(node.op_overload, torch._ops.OpOverload)
