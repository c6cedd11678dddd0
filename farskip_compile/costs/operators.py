# SPDX-License-Identifier: Apache-2.0
"""The work of one operator, and its seconds by the roofline model.

In:    a node of an ATen graph, forward or backward, with fake values in `meta["val"]`.
Out:   an `OpCost`; with a hardware profile, its seconds.
Never: runs the operator, or installs a guard on a symbolic size.

1. Views, allocations, arithmetic on sizes, inputs and outputs cost nothing. Launches and waits of collectives cost
   nothing here: their time passes on the wire (`collectives`).
2. A higher-order operator without a formula of its own costs as much as its bodies.
3. An operator with a FLOP formula (`products`): its FLOPs, and the bytes of inputs and outputs.
4. Everything else: bytes (`memory`), and the arithmetic of pointwise operators and reductions (`loops`).

    seconds = max(arithmetic, traffic) + new pages + launches * launch overhead
    arithmetic = FLOPs executed / rate + elementwise operations / element_rate

The rate of a product is that of its measured curve at its shape, or else peak * efficiency; that of traffic likewise.
Transposed bytes use the rate of transposed kernels. Curves are for one product at a time: a batch is that many of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from farskip_compile._compat import HigherOrderOperator, OpOverload
from farskip_compile.costs.fusion import fused_traffic
from farskip_compile.costs.loops import element_ops
from farskip_compile.costs.memory import SizeHint, is_free, is_sync, operand_tensors, tensors_of, traffic
from farskip_compile.costs.products import count_flops, executed_part, flop_kind, formula_of, is_backward, product_shape
from farskip_compile.costs.profile import HardwareProfile
from farskip_compile.passes.graph import comms, ops

OpKind = Literal["matmul", "attention", "grouped_matmul", "memory", "free", "collective", "wait", "sync", "unknown"]

KNOWN_NAMESPACES = frozenset(["aten", "prims", "inductor", "rngprims", "quantized_decomposed"])
"""Namespaces whose operators without a FLOP formula are known to be bound by memory."""


@dataclass(frozen=True)
class OpCost:
    """The work of one operator or kernel."""

    flops: int
    """Floating-point operations as torch counts them: a multiply-add is two, masks are ignored."""
    bytes_read: int
    """Bytes read from memory."""
    bytes_written: int
    """Bytes written to memory."""
    dtype: torch.dtype | None
    """The type of the operands; None for operators that cost nothing."""
    kind: OpKind
    """The efficiency that applies; `sync` reads a number on the host.

    `unknown` is an operator that torch does not define, counted by its bytes.
    """
    launches: int = 1
    """The number of kernels."""
    executed: float = 1.0
    """The fraction of `flops` that the kernel executes: a causal mask saves half."""
    element_ops: int = 0
    """Operations of pointwise operators and reductions; not in `flops`, as torch does not count them."""
    shape: tuple[int, int, int] | None = None
    """(rows, inner, columns) of one product, (queries, keys, width of a head) of attention; None: not known.

    It is also None for several products together.
    """
    batch: int = 1
    """The number of products of that shape: a batch, the groups, the heads."""
    backward: bool = False
    """True for the backward of an attention kernel."""
    transposed_bytes: int = 0
    """The part of the traffic that is across the memory's order."""
    fresh: tuple[int, ...] = ()
    """Bytes of each large buffer in memory that nothing has used before."""


FREE = OpCost(0, 0, 0, None, "free", launches=0)


def op_cost(node: fx.Node, size: SizeHint, *, fused: bool = False) -> OpCost:
    """Return the work of `node`.

    Args:
        node: of a graph with fake tensors in its metadata.
        size: a symbolic size to a number, such as `SizeHints`.
        fused: count pointwise operators and reductions as Inductor will fuse them, not as kernels of their own.
    """
    if comms.is_wait(node):
        return dataclasses.replace(FREE, kind="wait")
    if comms.is_collective(node):
        return dataclasses.replace(FREE, kind="collective")
    formula = formula_of(node) if node.op == "call_function" else None
    if formula is None and isinstance(node.target, HigherOrderOperator) and (bodies := _bodies(node)):
        costs = []
        for body in bodies:
            costs.append(combine(op_cost(inner, size, fused=fused) for inner in body.nodes))
        return max(costs, key=_size) if node.target.name() == "cond" else combine(costs)
    if is_free(node):
        return FREE
    read, written = fused_traffic(node, size) if fused else traffic(node, size)
    dtype = _dtype(node)
    if is_sync(node):
        return OpCost(0, read, 0, dtype, "sync")
    if formula is not None:
        flops = count_flops(node, formula, size)
        batch, shape = product_shape(node, size)
        return OpCost(
            flops,
            read,
            written,
            dtype,
            flop_kind(node),
            executed=executed_part(node, shape[1] if shape is not None else None),
            shape=shape,
            batch=batch,
            backward=is_backward(node),
        )
    known = isinstance(node.target, OpOverload) and node.target.namespace in KNOWN_NAMESPACES
    kind: OpKind = "memory" if known else "unknown"
    return OpCost(0, read, written, dtype, kind, launches=1 if written else 0, element_ops=element_ops(node, size))


def combine(costs: Iterable[OpCost]) -> OpCost:
    """Return the sum of `costs`; type and kind are those of the operator that computes or moves most."""
    costs = list(costs)
    if not costs:
        return FREE
    main = max(costs, key=_size)
    products = [cost for cost in costs if cost.flops]
    flops = sum(cost.flops for cost in products)
    alone = products[0] if len(products) == 1 else FREE
    return OpCost(
        flops=flops,
        bytes_read=sum(cost.bytes_read for cost in costs),
        bytes_written=sum(cost.bytes_written for cost in costs),
        dtype=main.dtype,
        kind=main.kind,
        launches=sum(cost.launches for cost in costs),
        element_ops=sum(cost.element_ops for cost in costs),
        transposed_bytes=sum(cost.transposed_bytes for cost in costs),
        executed=sum(cost.flops * cost.executed for cost in costs) / flops if flops else 1.0,
        shape=alone.shape,
        batch=alone.batch,
        backward=alone.backward,
        fresh=tuple(one for cost in costs for one in cost.fresh),
    )


def kernel_cost(costs: Iterable[OpCost], *, bytes_read: int, bytes_written: int) -> OpCost:
    """Return the cost of operators that became one kernel, whose true traffic is known after fusion.

    Args:
        costs: of the operators.
        bytes_read: by the kernel.
        bytes_written: by the kernel.
    """
    return dataclasses.replace(combine(costs), bytes_read=bytes_read, bytes_written=bytes_written, launches=1)


def _size(cost: OpCost) -> tuple[float, int, int]:
    return cost.flops * cost.executed, cost.bytes_read + cost.bytes_written, cost.element_ops


def _dtype(node: fx.Node) -> torch.dtype | None:
    """Return the type of the first floating-point operand, else of the first tensor."""
    tensors = [*operand_tensors(node), *tensors_of(ops.fake(node))]
    return next((value.dtype for value in tensors if value.is_floating_point()), tensors[0].dtype if tensors else None)


def _bodies(node: fx.Node) -> list[fx.Graph]:
    """Return the graphs that a higher-order operator runs."""
    owner = node.graph.owning_module
    if owner is None:
        return []
    found = (getattr(owner, str(arg.target), None) for arg in node.all_input_nodes if arg.op == "get_attr")
    return [body.graph for body in found if isinstance(body, fx.GraphModule)]


def tf32_allowed() -> bool:
    """Return whether float32 products may use TF32 now, by whichever of PyTorch's settings.

    The older setting, `allow_tf32`, raises once another one was used.
    """
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def op_seconds(cost: OpCost, profile: HardwareProfile, *, tf32: bool = False) -> float:
    """Return the seconds of one operator or kernel.

    Args:
        cost: of `op_cost` or `kernel_cost`.
        profile: the hardware.
        tf32: float32 products may use TF32, if the hardware has it.
    """
    if cost.kind == "sync" and profile.sync_seconds is not None:
        return profile.sync_seconds
    compute = cost.element_ops / profile.element_rate
    if cost.flops:
        compute += cost.flops * cost.executed / flop_rate(cost, profile, tf32=tf32)
    fresh = profile.curves.fresh if profile.curves is not None else None
    pages = sum(size / fresh.at(size) for size in cost.fresh) if fresh is not None else 0.0
    return max(compute, _traffic(cost, profile)) + pages + cost.launches * profile.launch_seconds


def flop_rate(cost: OpCost, profile: HardwareProfile, *, tf32: bool = False) -> float:
    """Return the FLOP/s that a kernel attains."""
    if profile.curves is not None and cost.shape is not None and min(cost.shape) > 0:
        kind = "attention_backward" if cost.backward else cost.kind
        curve = profile.curves.of(kind, _type_name(cost.dtype, profile, tf32=tf32))
        if curve is not None:
            return curve.at(*cost.shape)
    efficiency: float = getattr(profile.efficiency, cost.kind, profile.efficiency.matmul)
    return peak_flops(cost.dtype, profile, tf32=tf32) * efficiency


def peak_flops(dtype: torch.dtype | None, profile: HardwareProfile, *, tf32: bool = False) -> float:
    """Return the peak FLOP/s for operands of `dtype`; that of float32 if the profile has none."""
    name = _type_name(dtype, profile, tf32=tf32)
    return getattr(profile.peak_flops, name, None) or profile.peak_flops.float32


def _type_name(dtype: torch.dtype | None, profile: HardwareProfile, *, tf32: bool) -> str:
    """Return the name under which a profile has the figures of `dtype`."""
    name = str(dtype).removeprefix("torch.")
    if name.startswith("float8"):
        return "float8"
    return "tfloat32" if name == "float32" and tf32 and profile.peak_flops.tfloat32 is not None else name


def _traffic(cost: OpCost, profile: HardwareProfile) -> float:
    """Return the seconds of reading and writing."""
    moved = cost.bytes_read + cost.bytes_written
    curves, scalar = profile.curves, profile.memory_bandwidth * profile.efficiency.memory
    if moved == 0 or curves is None or curves.memory is None:
        return moved / scalar
    rate = curves.memory.at(moved)
    if curves.strided is None or cost.transposed_bytes == 0:
        return moved / rate
    across = min(cost.transposed_bytes, moved)
    return (moved - across) / rate + across / min(curves.strided.at(across), rate)
