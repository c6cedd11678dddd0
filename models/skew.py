"""Skewed routing: some experts are chosen far more often than others, as in trained models, and always the same ones.

In:    the number of experts, of experts per token, and an exponent.
Out:   what routers add to their scores. `expert_load.py` counts the resulting load.
Never: draws random numbers, or depends on a rank.

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

CERTAIN = 0.98
"""Largest fraction of the tokens that choose one expert. All of them would need an infinite bias."""


def shares(experts: int, top_k: int, skew: float) -> list[float]:
    """The fraction of the tokens meant to choose each expert; they sum to `top_k` if it is below `experts`."""
    weights = [rank**-skew for rank in range(1, experts + 1)]
    most = max(CERTAIN, top_k / experts)
    full = 0  # experts that get the most
    while True:
        scale = (top_k - full * most) / sum(weights[full:])
        if full + 1 == experts or scale * weights[full] <= most:
            return [most] * full + [scale * weight for weight in weights[full:]]
        full += 1


def skew_bias(experts: int, top_k: int, skew: float) -> torch.Tensor:
    """The bias for scores of variance 1, [experts], float64."""
    below_certain = [min(share, CERTAIN) for share in shares(experts, top_k, skew)]
    return torch.tensor([NormalDist().inv_cdf(share) for share in below_certain], dtype=torch.float64)
