# SPDX-License-Identifier: Apache-2.0
"""Sub-blocks of the generated decoders: attention over the rows of each sequence, routed and dense feed-forwards.

Contract: each takes the normed stream `[..., rows, width]`, of any number of rows. A feed-forward says in `parts` what
it adds, and what of that is left if its routed experts are left out. `torch.fx` can trace all of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, EXPERTS = 8, 3


class Attention(nn.Module):
    """One head, causal."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))


class MLP(nn.Module):
    """A dense feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.up(x)))

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """All that it adds, which has no routed part."""
        return self(x), self(x)


class Experts(nn.Module):
    """Two of three experts for each row, and shared experts or none."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH) / 2)
        self.shared = MLP() if shared else None

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, WIDTH)
        probabilities = self.router(flat).softmax(-1)
        weights, chosen = probabilities.topk(2, -1)
        gates = torch.zeros_like(probabilities).scatter(1, chosen, weights)
        routed = (torch.matmul(F.silu(flat), self.experts) * gates.t().unsqueeze(-1)).sum(0).view_as(x)
        return routed if self.shared is None else routed + self.shared(x)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """All that it adds, and the shared experts alone."""
        return self(x), self.shared(x) if self.shared is not None else None


FEED_FORWARDS = {"dense": MLP, "routed": lambda: Experts(False), "shared": lambda: Experts(True)}
