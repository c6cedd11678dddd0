# SPDX-License-Identifier: Apache-2.0
"""Routers: which experts each token uses, and with which weights.

Contract: `router(h)` takes [T, D] and returns (experts [T, top_k], weights [T, top_k]). Scores are computed in
float32 at least; a skew (`ModelConfig.router_skew`) adds a constant to them, which is not drawn at random and is the
same on all ranks; `expert_load.py` counts the resulting load. No sizes depend on the data.

Skew: some experts are chosen far more often than others, as in trained models, and always the same ones.
Zipf's law: the expert of rank e (expert 0 has rank 1) is to be chosen in proportion to 1 / e^skew. A token chooses each
expert at most once, so no expert gets more than one copy of each token: the excess of the first experts is distributed
among the others.

Algorithm (our own; no source). Seeded weights give approximately normal scores with variance 1, the same for all
experts. If a token chose every expert with a score above 0, the bias of an expert to be chosen with probability p would
be the normal quantile of p. It chooses the top k instead, which for biases whose p sum to k is nearly the same.
The first experts live on the first rank of expert parallelism: its load is the largest. Groups of experts and their
correction bias (DeepSeek-V3) also affect the choice, so that single experts deviate further from the law.
"""

from __future__ import annotations

from statistics import NormalDist

import torch
import torch.nn.functional as F
from torch import nn

from farskip_compile.models.config import ModelConfig

CERTAIN = 0.98
"""Largest fraction of the tokens that choose one expert. All of them would need an infinite bias."""
Routing = tuple[torch.Tensor, torch.Tensor]
"""Chosen experts and their weights, both [T, top_k]."""


class Router(nn.Module):
    """Common to all routers: one score per expert from a linear map, replicated on every rank."""

    skew_bias: torch.Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.zeros(config.experts, config.hidden_size))
        if config.router_skew:  # not part of the state, so that the seeded weights are the same with and without it
            bias = skew_bias(config.experts, config.top_k, config.router_skew)
            self.register_buffer("skew_bias", bias.to(torch.get_default_dtype()), persistent=False)

    def logits(self, h: torch.Tensor) -> torch.Tensor:
        """Raw scores, [T, experts]."""
        wide = torch.promote_types(h.dtype, torch.float32)
        logits = F.linear(h.to(wide), self.weight.to(wide)).to(wide)
        return logits + self.skew_bias.to(wide) if self.config.router_skew else logits

    def normalised(self, weights: torch.Tensor) -> torch.Tensor:
        """Make the weights of a token's chosen experts sum to one, if configured."""
        if not self.config.renormalise_weights:
            return weights
        return weights / (weights.sum(-1, keepdim=True) + 1e-20)

    def forward(self, h: torch.Tensor) -> Routing:
        """Choose experts for every token."""
        raise NotImplementedError


class SoftmaxRouter(Router):
    """The largest probabilities of a softmax over all experts (Mixtral, Qwen3)."""

    def forward(self, h: torch.Tensor) -> Routing:
        """Choose experts for every token."""
        weights, experts = self.logits(h).softmax(-1).topk(self.config.top_k, dim=-1)
        return experts, self.normalised(weights)


class SigmoidGroupRouter(Router):
    """Sigmoid scores; experts are chosen from the best groups only (DeepSeek-V3).

    A correction bias balances the load: it affects the choice, never the weights.
    """

    correction_bias: torch.Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.register_buffer("correction_bias", torch.zeros(config.experts))

    def forward(self, h: torch.Tensor) -> Routing:
        """Choose experts for every token."""
        config = self.config
        scores = self.logits(h).sigmoid()  # [T, E]
        by_group = (scores + self.correction_bias).unflatten(-1, (config.router_groups, -1))  # [T, G, E / G]
        group_scores = by_group.topk(2, dim=-1).values.sum(-1)  # [T, G]
        best_groups = group_scores.topk(config.router_top_groups, dim=-1).indices
        allowed = torch.zeros_like(group_scores).scatter(1, best_groups, 1.0).bool()  # [T, G]
        candidates = by_group.masked_fill(~allowed.unsqueeze(-1), float("-inf")).flatten(1)  # [T, E]
        experts = candidates.topk(config.top_k, dim=-1).indices
        weights = self.normalised(scores.gather(1, experts))
        return experts, weights * config.routed_scaling_factor


class SigmoidRouter(Router):
    """The largest logits; the sigmoid of a logit scales the expert's *input* (Llama-4)."""

    def forward(self, h: torch.Tensor) -> Routing:
        """Choose experts for every token."""
        logits, experts = self.logits(h).topk(self.config.top_k, dim=-1)
        return experts, logits.sigmoid()


def make_router(config: ModelConfig) -> Router:
    """Return the configured router."""
    kinds: dict[str, type[Router]] = {
        "softmax": SoftmaxRouter,
        "sigmoid_groups": SigmoidGroupRouter,
        "sigmoid_top1": SigmoidRouter,
    }
    return kinds[config.router](config)


# Skew


def shares(experts: int, top_k: int, skew: float) -> list[float]:
    """Return the fraction of the tokens meant to choose each expert; the sum is `top_k` if it is below `experts`."""
    weights = [rank**-skew for rank in range(1, experts + 1)]
    most = max(CERTAIN, top_k / experts)
    full = 0  # experts that get the most
    while True:
        scale = (top_k - full * most) / sum(weights[full:])
        if full + 1 == experts or scale * weights[full] <= most:
            return [most] * full + [scale * weight for weight in weights[full:]]
        full += 1


def skew_bias(experts: int, top_k: int, skew: float) -> torch.Tensor:
    """Return the bias for scores of variance 1, [experts], float64."""
    below_certain = [min(share, CERTAIN) for share in shares(experts, top_k, skew)]
    return torch.tensor([NormalDist().inv_cdf(share) for share in below_certain], dtype=torch.float64)
