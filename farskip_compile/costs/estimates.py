"""The cost model as the scheduler asks for it: seconds of graph nodes, of launches and of Inductor's kernels.

Contract: as everything in this package, a function of the graph and the profile alone.

Before fusion the bytes of elementwise work are not known; `fusion` estimates them. After it they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import fx

from farskip_compile.costs.alpha_beta import collective_seconds
from farskip_compile.costs.collectives import collective_cost
from farskip_compile.costs.memory import tensor_bytes, tensors_of
from farskip_compile.costs.operators import FREE, OpCost, kernel_cost, op_cost, op_seconds
from farskip_compile.costs.profile import HardwareProfile
from farskip_compile.costs.sizes import SizeHints
from farskip_compile.passes import ops

COMPUTED = ("matmul", "attention", "grouped_matmul")


@dataclass
class Estimates:
    """Costs of the nodes of one graph.

    Args:
        graph: the ATen graph that all nodes belong to.
        profile: the hardware.
    """

    graph: fx.Graph
    profile: HardwareProfile

    def __post_init__(self) -> None:
        self.size = SizeHints(self.graph)
        self._costs: dict[fx.Node, OpCost] = {}
        self._tf32 = torch.backends.cuda.matmul.allow_tf32

    def cost(self, node: fx.Node) -> OpCost:
        """What `node` does, by itself."""
        if node not in self._costs:
            self._costs[node] = op_cost(node, self.size)
        return self._costs[node]

    def bytes(self, node: fx.Node) -> int:
        """Bytes of the value of a node, all its tensors."""
        return sum(tensor_bytes(value, self.size) for value in tensors_of(ops.fake(node)))

    def collective(self, node: fx.Node) -> float:
        """Seconds of a launch on its channel."""
        cost = collective_cost(node, self.size)
        return collective_seconds(cost.kind, cost.bytes, cost.ranks, self.profile)

    def compute(self, node: fx.Node) -> float:
        """Seconds of a node before fusion."""
        return op_seconds(op_cost(node, self.size, fused=True), self.profile, tf32=self._tf32)

    def kernel(self, parts: Iterable[tuple[bool, list[fx.Node]]], traffic: int) -> float:
        """Seconds of a fused kernel.

        Args:
            parts: for each kernel fused into it, whether it calls a library, and the nodes behind it, the one that
                stands for it first.
            traffic: bytes that the kernel reads and writes.
        """
        parts = list(parts)
        flops = [self._product(origins) for extern, origins in parts if extern]
        seconds = [op_seconds(cost, self.profile, tf32=self._tf32) for cost in flops if cost.kind in COMPUTED]
        if seconds:
            return sum(seconds)
        loops = dict.fromkeys(node for extern, origins in parts if not extern for node in origins)
        loop = kernel_cost(map(self.cost, loops), bytes_read=traffic, bytes_written=0)
        return op_seconds(replace(loop, flops=0, launches=0 if traffic == 0 else 1), self.profile)

    def _product(self, origins: list[fx.Node]) -> OpCost:
        """The costliest product among the nodes behind a library call."""
        return max(map(self.cost, origins), key=lambda cost: cost.flops, default=FREE)
