# SPDX-License-Identifier: Apache-2.0
"""The Mixture-of-Experts feed-forward: routed experts plus shared experts.

Contract: `routed(h)` and `shared(h)` are this rank's shares of the two parts, not reduced over the tensor-parallel
ranks. `forward` adds the parts one after another, ((routed + shared 1) + shared 2), and reduces the sum once.
The FarSkip form calls the parts separately. `routed` is `assign`, the experts, and `weigh`: an overlapped schedule puts
other work between these.

Three ways to reach the experts of other ranks (`ParallelConfig.ep_mode`). By all-to-all, padded or dropless: `experts`
sends each token's copies to their ranks. By all-gather: every rank routes all tokens and applies its own experts, and
the sum over the ranks is scattered back to the tokens' owners. Shared experts always see local tokens only.
"""

from __future__ import annotations

from fractions import Fraction
from typing import cast

import torch
from torch import nn

from farskip_compile._compat import collectives
from farskip_compile.models.config import ModelConfig, ParallelConfig
from farskip_compile.models.experts import Experts
from farskip_compile.models.mlp import MLP
from farskip_compile.models.router import make_router
from farskip_compile.models.tensor_parallel import reduce_partial


def summed(parts: list[torch.Tensor]) -> torch.Tensor:
    """Return ((first + second) + third)."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


class MoE(nn.Module):
    """A router, its experts, and the shared experts that every token passes."""

    def __init__(self, config: ModelConfig, parallel: ParallelConfig) -> None:
        super().__init__()
        self.parallel = parallel
        self.gather_group = parallel.ep_group if parallel.ep_mode == "allgather" else None
        self.top_k = config.top_k
        self.weights_scale_input = config.router == "sigmoid_top1"
        factor = parallel.capacity_factor
        self.room: Fraction | None = None
        """Slots of an expert per token; None: one, since a token chooses an expert at most once."""
        if factor is not None:
            self.room = Fraction(factor).limit_denominator(1000) * config.top_k / config.experts
        self.router = make_router(config)
        self.experts = Experts(config, parallel)
        self.shared_experts = nn.ModuleList(
            MLP(config, config.moe_intermediate_size, parallel) for _ in range(config.shared_experts)
        )
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def slots(self, tokens: int) -> int:
        """Room per expert in a padded exchange of this many tokens, rounded up."""
        if self.room is None:
            return tokens
        numerator, denominator = self.room.numerator, self.room.denominator
        return (tokens * numerator + denominator - 1) // denominator

    def assign(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens [N, D] -> their copies [N * k, D], the expert of each copy [N * k], and its weight [N, k, 1]."""
        experts, weights = self.router(tokens)  # [N, k]
        weights = weights.to(tokens.dtype).unsqueeze(-1)  # [N, k, 1]
        rows = tokens.unsqueeze(1).expand(-1, self.top_k, -1)  # [N, k, D]
        if self.weights_scale_input:
            rows = rows * weights
        return rows.flatten(0, 1), experts.flatten(), weights

    def weigh(self, outputs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return one weighted sum per token, [N, D], of the experts' outputs [N * k, D] by the weights [N, k, 1]."""
        outputs = outputs.unflatten(0, (-1, self.top_k))  # [N, k, D]
        if not self.weights_scale_input:
            outputs = outputs * weights
        return outputs.sum(1)

    def routed(self, h: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of each token's chosen experts, [B, T, D]."""
        tokens = h.flatten(0, 1)  # [N, D]
        if self.gather_group is not None:
            tokens = collectives.all_gather(tokens, 0, self.gather_group)  # [ranks * N, D], all routed everywhere
        rows, experts, weights = self.assign(tokens)
        apply = self.experts if self.gather_group is None else self.experts.local
        summed = self.weigh(apply(rows, experts, self.slots(tokens.shape[0])), weights)
        if self.gather_group is not None:
            summed = collectives.reduce_scatter(summed, "sum", 0, self.gather_group)
        return self.dropout(summed.view_as(h))

    def shared(self, h: torch.Tensor) -> list[torch.Tensor]:
        """Return the output of each shared expert, [B, T, D]."""
        return [cast(MLP, expert).partial(h) for expert in self.shared_experts]

    def reduce(self, partial: torch.Tensor) -> torch.Tensor:
        """Sum over the tensor-parallel ranks, for the tokens of this rank's stream."""
        return reduce_partial(partial, self.parallel)

    def partial(self, h: torch.Tensor) -> torch.Tensor:
        """Return this rank's share of routed and shared experts together, [B, T, D]."""
        return summed([self.routed(h), *self.shared(h)])

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """Routed and shared experts together, for the tokens of this rank's stream."""
        return self.reduce(self.partial(h))
