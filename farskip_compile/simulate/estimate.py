"""The cost model as a scenario wants it: what products compute in, and how much collectives slow compute.

Contract: as `costs.Estimates`, a function of graph, profile and scenario alone.

Engines that serve 8-bit checkpoints multiply in 8 bits, operands of two bytes then take one; what transformers computes
in float32, such as a router, they compute in bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import fx

from farskip_compile.costs.estimates import Estimates
from farskip_compile.costs.operators import OpCost
from farskip_compile.costs.roofline import op_seconds

PRODUCTS = ("matmul", "grouped_matmul")


@dataclass
class ScenarioEstimates(Estimates):
    """Costs of the nodes of one graph of a scenario."""

    float8: bool = False
    """Products of 16-bit operands in 8 bits."""
    slows: float | None = None
    """Part by which compute takes longer while a collective is in flight; None: what the profile says."""

    def compute(self, node: fx.Node) -> float:
        """Seconds of a node before fusion."""
        if not self.float8:
            return super().compute(node)
        return op_seconds(_in_8_bits(self.fused_cost(node)), self.profile)

    def interference(self, node: fx.Node) -> float:
        """Compute takes (1 + this) times as long while the collective that `node` launches is in flight."""
        return super().interference(node) if self.slows is None else self.slows


def _in_8_bits(cost: OpCost) -> OpCost:
    if cost.kind not in PRODUCTS:
        return cost
    if cost.dtype == torch.float32:
        return replace(cost, dtype=torch.bfloat16, bytes_read=cost.bytes_read // 2)
    return replace(cost, dtype=torch.float8_e4m3fn, bytes_read=cost.bytes_read // 2)
