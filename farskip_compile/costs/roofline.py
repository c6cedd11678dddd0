"""How long a kernel takes: the roofline model, by measured curves where a profile has them.

In:    an `OpCost` and a hardware profile.
Out:   seconds.
Never: runs anything.

    seconds = max(arithmetic, traffic) + new pages + launches * launch overhead
    arithmetic = FLOPs executed / rate + elementwise operations / element_rate

The rate of a product is that of its curve at its shape, or else peak * efficiency; that of traffic likewise. Transposed
bytes use the rate of transposed kernels. Curves are for one product at a time: a batch is that many of them.
"""

from __future__ import annotations

import torch

from farskip_compile.costs.operators import OpCost
from farskip_compile.costs.profile import HardwareProfile


def op_seconds(cost: OpCost, profile: HardwareProfile, *, tf32: bool = False) -> float:
    """Seconds of one operator or kernel.

    Args:
        cost: from `op_cost` or `kernel_cost`.
        profile: the hardware.
        tf32: whether float32 products may use TF32, where the hardware has it.
    """
    if cost.kind == "sync" and profile.sync_seconds is not None:
        return profile.sync_seconds
    compute = cost.element_ops / profile.element_rate
    if cost.flops:
        compute += cost.flops * cost.executed / flop_rate(cost, profile, tf32=tf32)
    return max(compute, _traffic(cost, profile)) + _pages(cost, profile) + cost.launches * profile.launch_seconds


def flop_rate(cost: OpCost, profile: HardwareProfile, *, tf32: bool = False) -> float:
    """FLOP/s that a kernel attains."""
    if profile.curves is not None and cost.shape is not None and min(cost.shape) > 0:
        kind = "attention_backward" if cost.backward else cost.kind
        curve = profile.curves.of(kind, _type_name(cost.dtype, profile, tf32=tf32))
        if curve is not None:
            return curve.at(*cost.shape)
    efficiency: float = getattr(profile.efficiency, cost.kind, profile.efficiency.matmul)
    return peak_flops(cost.dtype, profile, tf32=tf32) * efficiency


def peak_flops(dtype: torch.dtype | None, profile: HardwareProfile, *, tf32: bool = False) -> float:
    """Peak FLOP/s for operands of `dtype`; that of float32 where the profile has none."""
    name = _type_name(dtype, profile, tf32=tf32)
    return getattr(profile.peak_flops, name, None) or profile.peak_flops.float32


def _type_name(dtype: torch.dtype | None, profile: HardwareProfile, *, tf32: bool) -> str:
    """The name under which a profile has the figures of `dtype`."""
    name = str(dtype).removeprefix("torch.")
    if name.startswith("float8"):
        return "float8"
    return "tfloat32" if name == "float32" and tf32 and profile.peak_flops.tfloat32 is not None else name


def _traffic(cost: OpCost, profile: HardwareProfile) -> float:
    """Seconds of reading and writing."""
    moved = cost.bytes_read + cost.bytes_written
    curves, scalar = profile.curves, profile.memory_bandwidth * profile.efficiency.memory
    if moved == 0 or curves is None or curves.memory is None:
        return moved / scalar
    rate = curves.memory.at(moved)
    if curves.strided is None or cost.transposed_bytes == 0:
        return moved / rate
    across = min(cost.transposed_bytes, moved)
    return (moved - across) / rate + across / min(curves.strided.at(across), rate)


def _pages(cost: OpCost, profile: HardwareProfile) -> float:
    """Seconds in which the system hands out the pages of large new buffers."""
    if profile.curves is None or profile.curves.fresh is None:
        return 0.0
    return sum(size / profile.curves.fresh.at(size) for size in cost.fresh)
