# SPDX-License-Identifier: Apache-2.0
"""The SwiGLU feed-forward of a dense layer or a shared expert.

Contract: `partial(h)` is this rank's share of the output, not reduced over the tensor-parallel ranks; `forward` is
`partial` followed by that reduction.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from farskip_compile.models.config import ModelConfig, ParallelConfig
from farskip_compile.models.sharding import ColumnLinear, RowLinear
from farskip_compile.models.tensor_parallel import reduce_partial


class MLP(nn.Module):
    """down(silu(gate(h)) * up(h)), with the inner width cut among the tensor-parallel ranks."""

    def __init__(self, config: ModelConfig, inner: int, parallel: ParallelConfig) -> None:
        super().__init__()
        self.parallel = parallel
        group = parallel.tp_group
        self.gate = ColumnLinear(config.hidden_size, inner, group, "inner channels of an MLP")
        self.up = ColumnLinear(config.hidden_size, inner, group, "inner channels of an MLP")
        self.down = RowLinear(inner, config.hidden_size, group, "inner channels of an MLP")
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def partial(self, h: torch.Tensor) -> torch.Tensor:
        """Return this rank's share of the output, [B, T, D]."""
        return self.dropout(self.down(F.silu(self.gate(h)) * self.up(h)))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """Return the output for the tokens of this rank's stream."""
        return reduce_partial(self.partial(h), self.parallel)
