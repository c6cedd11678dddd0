# SPDX-License-Identifier: Apache-2.0
"""The cost model as the scheduler uses it: seconds of graph nodes, of launches and of Inductor's kernels.

Contract: a function of the graph, the profile and the options alone, like everything in this package.

Before fusion the bytes of elementwise work are not known, and `memory` estimates them. After fusion they are known.

`float8`: engines that serve 8-bit checkpoints multiply in 8 bits, so operands of two bytes take one. Products that
transformers computes in float32, such as a router, engines compute in bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import fx

from farskip_compile.costs.collectives import collective_cost, collective_seconds, interference
from farskip_compile.costs.fusion import fresh_bytes
from farskip_compile.costs.loops import kernel_ops, transposed_bytes
from farskip_compile.costs.operators import FREE, OpCost, op_cost, op_seconds, tf32_allowed
from farskip_compile.costs.profile import HardwareProfile
from farskip_compile.costs.sizes import SizeHints
from farskip_compile.passes.graph import ops
from farskip_compile.passes.graph.declared import part_of_a_collective

COMPUTED = ("matmul", "attention", "grouped_matmul")
PRODUCTS = ("matmul", "grouped_matmul")
HOST = 5
"""Launches that a read on the host takes as long as, unless it was measured.

The copy and its event, the host that wakes up, and its launches until the device has work again.
"""


@dataclass
class Estimates:
    """Costs of the nodes of one graph.

    Args:
        graph: the ATen graph that all nodes belong to.
        profile: the hardware.
        imbalance: rows that the fullest rank gets in a dispatch without drops, over the mean.
        float8: whether products of 16-bit operands are computed in 8 bits.
        slowdown: the result of `interference` for every launch; None: that of the profile.
        came: most seconds that a collective from an earlier graph still takes; None: as long as if launched now.
    """

    graph: fx.Graph
    profile: HardwareProfile
    imbalance: float = 1.0
    float8: bool = False
    slowdown: float | None = None
    came: float | None = None

    def __post_init__(self) -> None:
        self.size = SizeHints(self.graph, imbalance=self.imbalance)
        self._costs: dict[fx.Node, OpCost] = {}
        pages = self.profile.curves is not None and self.profile.curves.fresh is not None
        self._fresh = fresh_bytes(self.graph, self.size) if pages else {}
        self._tf32 = tf32_allowed()

    def cost(self, node: fx.Node) -> OpCost:
        """Return the cost of `node` by itself."""
        if node not in self._costs:
            self._costs[node] = self._with_pages(node, op_cost(node, self.size))
        return self._costs[node]

    def bytes(self, node: fx.Node) -> int:
        """Return the bytes of the value of a node, all its tensors."""
        return self.size.bytes_of(node)

    def collective(self, node: fx.Node) -> float:
        """Return the seconds of a launch on its channel."""
        if _to_host(node):
            return self.profile.sync_seconds or HOST * self.profile.launch_seconds
        cost = collective_cost(node, self.size)
        return collective_seconds(cost.kind, cost.bytes, cost.ranks, self.profile, fewer=cost.fewer)

    def arrival(self, node: fx.Node) -> float:
        """Return the seconds that the collective of an earlier graph, which `node` waits for, still takes."""
        seconds = self.collective(node)
        return seconds if self.came is None else min(seconds, self.came)

    def link(self, node: fx.Node) -> str:
        """Return the link of the profile that a launch uses, which groups share; empty for a group of one rank."""
        ranks = 1 if _to_host(node) else collective_cost(node, self.size).ranks
        return "" if ranks < 2 else "intra_node" if ranks <= self.profile.ranks_per_node else "inter_node"

    def interference(self, node: fx.Node) -> float:
        """Return the fraction by which compute takes longer while the collective of `node` is in flight."""
        if _to_host(node):
            return 0.0
        if self.slowdown is not None:
            return self.slowdown
        return interference(collective_cost(node, self.size).ranks, self.profile)

    def compute(self, node: fx.Node) -> float:
        """Return the seconds of a node before fusion."""
        if _blocks(node):
            return self.collective(node)
        cost = self.fused_cost(node)
        if not self.float8:
            return op_seconds(cost, self.profile, tf32=self._tf32)
        return op_seconds(_in_8_bits(cost) if cost.kind in PRODUCTS else cost, self.profile)

    def fused_cost(self, node: fx.Node) -> OpCost:
        """Return the cost of `node` if Inductor will fuse it as expected."""
        return self._with_pages(node, op_cost(node, self.size, fused=True))

    def kernel(self, parts: Iterable[tuple[bool, list[fx.Node]]], traffic: int) -> float:
        """Return the seconds of a fused kernel that reads and writes `traffic` bytes.

        Args:
            parts: for each kernel fused into it: whether it calls a library, and the nodes that it computes, the one
                that stands for it first.
            traffic: of the fused kernel.
        """
        parts = list(parts)
        library_calls = [origins for calls_library, origins in parts if calls_library]
        loops = [origins for calls_library, origins in parts if not calls_library]
        if blocking := [origins[0] for origins in library_calls if origins and _blocks(origins[0])]:
            return sum(map(self.collective, blocking))
        products = list(map(self._product, library_calls))
        seconds = [op_seconds(cost, self.profile, tf32=self._tf32) for cost in products if cost.kind in COMPUTED]
        if seconds:
            return sum(seconds)
        if any(cost.kind == "sync" for cost in products):
            return op_seconds(OpCost(0, traffic, 0, None, "sync"), self.profile)
        fresh: dict[fx.Node, int] = {}
        for origins in loops:
            fresh |= {node: self._fresh[node] for node in origins if node in self._fresh}
        moved = sum(transposed_bytes(origins, self.size) for origins in loops)
        arithmetic, launches = kernel_ops(loops, self.size), 1 if traffic else 0
        cost = OpCost(0, traffic, 0, None, "memory", launches, element_ops=arithmetic, transposed_bytes=moved)
        return op_seconds(replace(cost, fresh=tuple(fresh.values())), self.profile)

    def _product(self, origins: list[fx.Node]) -> OpCost:
        """Return the cost of the costliest product among the nodes of a library call, else of the first node."""
        costs = list(map(self.cost, origins))
        return max(costs, key=lambda cost: cost.flops, default=FREE)

    def _with_pages(self, node: fx.Node, cost: OpCost) -> OpCost:
        return replace(cost, fresh=(self._fresh[node],)) if node in self._fresh else cost


def _to_host(node: fx.Node) -> bool:
    """Return whether `node` is a copy to the host, which is on no wire between ranks."""
    return ops.op_name(node) == "farskip::to_host"


def _blocks(node: fx.Node) -> bool:
    """Return whether compute stands still while this collective is under way."""
    return part_of_a_collective(node) == "blocking"


def _in_8_bits(cost: OpCost) -> OpCost:
    dtype = torch.bfloat16 if cost.dtype == torch.float32 else torch.float8_e4m3fn
    return replace(cost, dtype=dtype, bytes_read=cost.bytes_read // 2)
