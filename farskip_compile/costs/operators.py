"""What one operator computes, reads and writes; and how long that takes: the roofline model.

In:    a node of an ATen graph with fake values in `meta["val"]`.
Out:   an `OpCost`, or seconds.
Never: runs the operator, or installs a guard on a symbolic size.

1. Views, size arithmetic, placeholders and outputs cost nothing; launches and waits of collectives neither (see
   `collectives`).
2. Where torch's FLOP registry or `flops` has a formula: its FLOPs, and the bytes of inputs and outputs.
3. Everything else is bound by memory: bytes only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from farskip_compile.costs.flops import count_flops
from farskip_compile.costs.memory import tensor_bytes, tensors_of
from farskip_compile.costs.profile import HardwareProfile
from farskip_compile.passes import ops

Size = Callable[[int | torch.SymInt], int]
Kind = Literal["matmul", "attention", "grouped_matmul", "memory", "free", "collective", "wait", "unknown"]


@dataclass(frozen=True)
class OpCost:
    """What one operator or kernel does."""

    flops: int
    """Floating-point operations as torch counts them: a multiply-add is two, masks are ignored."""
    bytes_read: int
    """Bytes read from memory."""
    bytes_written: int
    """Bytes written to memory."""
    dtype: torch.dtype | None
    """Type that is computed in; None for operators that compute nothing."""
    kind: Kind
    """Which efficiency applies."""
    launches: int = 1
    """Kernels started."""
    executed: float = 1.0
    """Part of `flops` that the kernel really executes: a causal mask saves half."""


FREE = OpCost(0, 0, 0, None, "free", launches=0)


def op_cost(node: fx.Node, size: Size) -> OpCost:
    """What `node` computes, reads and writes.

    Args:
        node: any node of an ATen graph.
        size: turns a size, which may be symbolic, into a number; see `SizeHints`.
    """
    if node.op != "call_function" or ops.op_name(node) == "getitem":
        return FREE
    if ops.is_wait(node):
        return OpCost(0, 0, 0, None, "wait", launches=0)
    if ops.is_collective(node):
        return OpCost(0, 0, 0, None, "collective", launches=0)
    written = tensors_of(ops.fake(node))
    if not written or getattr(node.target, "is_view", False):
        return FREE
    read = [value for arg in node.all_input_nodes for value in tensors_of(ops.fake(arg))]
    flops, kind = count_flops(node, size)
    return OpCost(
        flops,
        sum(tensor_bytes(value, size) for value in read),
        sum(tensor_bytes(value, size) for value in written),
        (read or written)[0].dtype,
        kind,
    )


def op_seconds(cost: OpCost, profile: HardwareProfile, *, tf32: bool = False) -> float:
    """Seconds by the roofline: max(FLOPs / attainable FLOP/s, bytes / attainable bytes/s) + launch overhead.

    Args:
        cost: from `op_cost`.
        profile: the hardware.
        tf32: whether float32 products may use TF32, where the hardware has it.
    """
    compute = 0.0
    if cost.flops:
        efficiency = getattr(profile.efficiency, cost.kind, profile.efficiency.matmul)
        compute = cost.flops * cost.executed / (peak_flops(cost.dtype, profile, tf32=tf32) * efficiency)
    memory = (cost.bytes_read + cost.bytes_written) / (profile.memory_bandwidth * profile.efficiency.memory)
    return max(compute, memory) + cost.launches * profile.launch_seconds


def peak_flops(dtype: torch.dtype | None, profile: HardwareProfile, *, tf32: bool = False) -> float:
    """Peak FLOP/s for inputs of `dtype`; that of float32 where the profile has none."""
    name = str(dtype).removeprefix("torch.")
    name = "float8" if name.startswith("float8") else "tfloat32" if tf32 and name == "float32" else name
    return getattr(profile.peak_flops, name, None) or profile.peak_flops.float32
