# SPDX-License-Identifier: Apache-2.0
"""The two norms that decoders use before a sub-block.

Contract: the output has the dtype of the input; statistics are computed in float32 at least.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from farskip_compile.models.config import ModelConfig


class RMSNorm(nn.Module):
    """Divide by the root mean square of the last dimension, then multiply by a weight."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean_square = wide.pow(2).mean(-1, keepdim=True)
        return (wide * torch.rsqrt(mean_square + self.epsilon) * self.weight).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """Subtract the mean and divide by the standard deviation; weight and bias."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension."""
        wide = torch.promote_types(x.dtype, torch.float32)
        normed = F.layer_norm(x.to(wide), self.weight.shape, self.weight.to(wide), self.bias.to(wide), self.eps)
        return normed.to(x.dtype)


def make_norm(config: ModelConfig) -> nn.Module:
    """Return the configured norm of the residual stream."""
    kind = RMSNorm if config.norm == "rms" else LayerNorm
    return kind(config.hidden_size, config.norm_epsilon)
